"""Lines of text files, decompressed and decoded; lines that hold no text say why."""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fq_toolkit.optimus.model.batch import is_unicode
from fq_toolkit.training.atomic import explain
from fq_toolkit.training.errors import ConfigError

# Endings of files of one text a line, of tables, and of one JSON object a line.
LINES = (".txt", ".txt.gz")
TABLES = (".tsv", ".tsv.gz")
JSON_LINES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")

EMPTY, NOT_JSON, NO_TAB = "empty", "not a JSON object", "without a tab"
NOT_UTF8 = "not UTF-8"
HALF_A_PAIR = "with half of a surrogate pair"


class Skip(str):
    """Why there is no text, in place of the text."""


def tidy(text: str) -> str:
    r"""Return a text with each run of white space as one space, or why there is no text.

    JSON can hold half of a surrogate pair (``"\ud83d"``, an emoji cut in two), which no tokenizer takes.
    """
    if isinstance(text, Skip):
        return text
    return " ".join(text.split()) if is_unicode(text) else Skip(HALF_A_PAIR)


def json_object(line: str) -> dict[str, Any] | Skip:
    """Return the object of a JSON line, or why there is none."""
    if isinstance(line, Skip):
        return line
    if not line.strip():
        return Skip(EMPTY)
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # deep nesting exhausts the parser's stack
        return Skip(NOT_JSON)
    return row if isinstance(row, dict) else Skip(NOT_JSON)


def reasons(skipped: Mapping[str, int]) -> str:
    """Return why a file holds nothing that can be used.

    Example:
        >>> reasons({"empty": 2}), reasons({})
        ('2 empty', 'no lines')
    """
    return ", ".join(f"{count} {reason}" for reason, count in skipped.items()) or "no lines"


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file, and a `Skip` for each line that is not UTF-8.

    Raises:
        ConfigError: when the file cannot be read, or is not compressed by gzip as its name says.
    """
    for line in _unpacked(path):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError:
            yield Skip(NOT_UTF8)


def _unpacked(path: Path) -> Iterator[bytes]:
    """Yield the decompressed lines of a file, without a byte-order mark."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            for number, line in enumerate(file):
                # Windows editors begin a file with a byte-order mark, which would be part of the first word.
                yield line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ConfigError(f"{path} is damaged or not packed with gzip: {error}") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {explain(error)}") from error
