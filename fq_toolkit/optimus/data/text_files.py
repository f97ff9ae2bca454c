"""Lines of text files: unpacked, decoded, and marked where there is no text in them."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from fq_toolkit.optimus.model.batch import is_unicode
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.storage.atomic import explain

NOT_UTF8 = "not UTF-8"
HALF_A_PAIR = "with half of a surrogate pair"


class Skip(str):
    """In place of a text: why there is none."""


def tidy(text: str) -> str:
    r"""Make white space single, or say why there is no text.

    JSON can hold half of a surrogate pair (``"\ud83d"``, an emoji cut in two), which no tokenizer takes.
    """
    if isinstance(text, Skip):
        return text
    return " ".join(text.split()) if is_unicode(text) else Skip(HALF_A_PAIR)


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file in UTF-8, or a :class:`Skip` for one that is not.

    Raises:
        ConfigError: when the file cannot be read, or is not packed with gzip as its name says.
    """
    for line in _unpacked(path):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError:
            yield Skip(NOT_UTF8)


def _unpacked(path: Path) -> Iterator[bytes]:
    """Read the lines of a file, unpacked, without a byte-order mark."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            for number, line in enumerate(file):
                yield line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ConfigError(f"{path} is damaged or not packed with gzip: {error}") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {explain(error)}") from error
