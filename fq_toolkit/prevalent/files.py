"""Reading and writing data files; every error names the file and, where there is one, the item."""

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from fq_toolkit.training.atomic import explain, write_atomic
from fq_toolkit.training.errors import RunError

_LFS = b"version https://git-lfs.github.com/spec/"
_LINES = (".jsonl", ".ndjson")
RECORD_ENDINGS = (".json", *_LINES)
"""Endings of files that hold records; ``.gz`` may follow."""

# Limits against archives that unpack to far more than they are (gzip reaches a ratio of 1000).
_ALWAYS_FITS = 64 << 20  # unpacked bytes that are accepted whatever the size of the file
_MOST_RATIO = 100  # the ratio that is accepted above that; JSON with long names reaches about 30

# Leading bytes of formats that are mistaken for JSON. Users rename downloads, so endings say nothing.
_KINDS = (
    (b"PK\x03\x04", "a zip archive (npz, or PyTorch's)"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"%PDF", "a PDF"),
    (b"SQLite format 3", "an SQLite database"),
    (b"BZh", "compressed by bzip2"),
    (b"\xfd7zXZ", "compressed by xz"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd"),
)


class DataError(RunError, ValueError):
    """An unusable data file or item; the message names the file, the item and the remedy.

    The command line prints it as it prints any `RunError`; callers may also catch it as a ValueError.
    """


def check_readable(path: Path) -> None:
    """Check that a path is a regular file with content, and not a git-LFS pointer.

    Raises:
        DataError: if it is not.
    """
    try:
        if path.exists() and not path.is_file():  # opening a named pipe would block forever
            raise DataError(f"{path} is {'a folder' if path.is_dir() else 'no plain file'}; expected a file")
        with open(path, "rb") as file:
            head = file.read(len(_LFS))
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except DataError:
        raise
    except ValueError as error:  # a NUL in the name
        raise DataError(f"cannot read {str(path)!r}: {error}") from error
    if head == _LFS:
        raise DataError(f"{path} is a git-LFS pointer, not the data: run `git lfs pull` in its repository")
    if not head:
        raise DataError(f"{path} is empty")


def describe_content(head: bytes) -> str | None:
    """Return the format that the first bytes of a file belong to, or None if they may be JSON.

    Example:
        >>> describe_content(b"%PDF-1.4"), describe_content(b"[{}]")
        ('a PDF', None)
    """
    for magic, kind in _KINDS:
        if head.startswith(magic):
            return kind
    if len(head) > 1 and head[0] == 0x80 and head[1] <= 5:  # opcode PROTO and its version
        return "a pickle"
    if head.lstrip().startswith(b"<"):
        return "HTML or XML, perhaps the page of a failed download"
    return None


def read_bytes(path: Path) -> bytes:
    """Read a file and unpack it if it is gzip, whatever its name.

    Raises:
        DataError: if the file is missing, empty, a git-LFS pointer or damaged, or unpacks to a size that no
            annotation file has.
    """
    check_readable(path)
    try:
        raw = path.read_bytes()
        if not raw.startswith(b"\x1f\x8b"):
            return raw
        most = max(_ALWAYS_FITS, _MOST_RATIO * len(raw))
        with gzip.open(path) as file:
            content = file.read(most + 1)  # one byte more than allowed tells whether there is more
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}): truncated or damaged; fetch it again") from error
    if len(content) > most:
        raise DataError(
            f"{path} unpacks to more than {most >> 20} MiB from {len(raw)} bytes, which no annotations do: "
            "unpack it by hand if it is what you mean"
        )
    return content


def _decode(path: Path, content: bytes) -> Any:
    """Decode JSON, or raise an error that says what the content is instead."""
    kind = describe_content(content[:64])
    if kind is not None:
        raise DataError(f"{path} is {kind}; expected JSON")
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        # The first object was fine and more follows: most likely one object per line.
        if error.msg == "Extra data" and content[: error.pos].lstrip().startswith(b"{"):
            raise DataError(
                f"{path} holds several JSON objects: if it has one on each line, name it .jsonl or .jsonl.gz"
            ) from error
        raise DataError(
            f"{path} is not valid JSON ({error}): truncated or damaged; fetch it again"
        ) from error
    except (ValueError, RecursionError) as error:  # no UTF-8, or nested thousands of levels deep
        raise DataError(
            f"{path} is not valid JSON ({error}): truncated or damaged; fetch it again"
        ) from error


def read_json(path: Path) -> Any:
    """Read a JSON file, compressed by gzip or not.

    Args:
        path: the file.

    Returns:
        The decoded content.

    Raises:
        DataError: if the file is missing, empty, a git-LFS pointer, truncated or not JSON.
    """
    return _decode(path, read_bytes(path))


def make_folder(path: str | Path) -> Path:
    """Create a folder, and its parents, if it does not exist.

    Returns:
        The folder.

    Raises:
        RunError: if it cannot be created.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot create {folder}: {explain(error)}") from error
    return folder


def write_json(path: Path, value: Any, *, indent: int | None = None) -> Path:
    """Write a value as JSON, atomically.

    Args:
        path: the file.
        value: anything that JSON can hold.
        indent: spaces per level; None writes one line.

    Returns:
        The file.

    Raises:
        RunError: if it cannot be written.
    """
    write_atomic(path, (json.dumps(value, indent=indent) + "\n").encode())
    return path


def _read_lines(path: Path) -> list[Any]:
    """Return the values of a file that holds one on each line."""
    content = read_bytes(path)
    kind = describe_content(content[:64])
    if kind is not None:
        raise DataError(f"{path} is {kind}; expected one JSON object on each line")
    values = []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            values.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}: line {number} is not valid JSON ({error}): truncated or damaged, or not one object "
                "on each line; a file that holds one list is named .json"
            ) from error
    return values


def _ending(path: Path) -> str:
    """Return the last ending of a name in lower case, ``.gz`` left out."""
    endings = [ending.lower() for ending in path.suffixes if ending.lower() != ".gz"]
    return endings[-1] if endings else ""


def is_record_file(path: str | Path) -> bool:
    """Return whether a path has the name of a file of records and is not a folder.

    Example:
        >>> is_record_file("triplets.jsonl.gz"), is_record_file("features.tsv")
        (True, False)
    """
    path = Path(path)
    return _ending(path) in RECORD_ENDINGS and not path.is_dir()


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read a list of objects: a JSON list, or a ``.jsonl`` file with one object per line; both also ``.gz``.

    Raises:
        DataError: if the file is unreadable or holds something else.
    """
    records = _read_lines(path) if _ending(path) in _LINES else read_json(path)
    if isinstance(records, dict):
        raise DataError(
            f"{path} holds dict; expected a JSON list of items, not one object with the keys "
            f"{_some_keys(records)}{_foreign(records)}"
        )
    if not isinstance(records, list):
        raise DataError(f"{path} holds {type(records).__name__}; expected a JSON list of items")
    for position, record in enumerate(records):
        if not isinstance(record, dict):
            raise DataError(f"{path}: item {position} is {type(record).__name__}; expected a JSON object")
    return records


def _some_keys(record: dict[str, Any]) -> str:
    """Return the first few keys of an object, for a message."""
    return ", ".join(repr(key[:40]) for key in list(record)[:9]) + (", ..." if len(record) > 9 else "")


def _foreign(record: dict[str, Any]) -> str:
    """Return what a file may be whose top level is an object: other projects' formats, by their keys."""
    if "episodes" in record:
        return " (episodes of VLN-CE, whose places are coordinates)"
    first = next(iter(record.values()), None)
    if isinstance(first, list) and first and isinstance(first[0], dict) and "position" in first[0]:
        return " (trajectories of VLN-CE, whose places are coordinates)"
    if "val_unseen" in record or "val_seen" in record:
        return " (one list for each split?)"
    return ""


def field(record: dict[str, Any], name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """Return one field of an item.

    Args:
        record: the item.
        name: name of the field.
        kind: the expected type or types; a bool does not count as a number.
        where: file and item, for the message.

    Raises:
        DataError: if the field is absent or of another type.
    """
    if not isinstance(record, dict):
        raise DataError(f"{where}: {str(record)[:60]} is no object; expected one with the field {name!r}")
    if name not in record:
        raise DataError(f"{where} has no field {name!r}; it has {_some_keys(dict(sorted(record.items())))}")
    value = record[name]
    # bool is a subclass of int, so true would pass as the number 1.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise DataError(
            f"{where}: {name} is {type(value).__name__}; expected {' or '.join(k.__name__ for k in kinds)}"
        )
    return value


def strings(record: dict[str, Any], name: str, where: str, *, at_least: int = 1) -> tuple[str, ...]:
    """Return a field that is a list of strings.

    Raises:
        DataError: if it is something else, or shorter than ``at_least``.
    """
    values = field(record, name, list, where)
    if len(values) < at_least or not all(isinstance(value, str) for value in values):
        raise DataError(f"{where}: {name} is no list of at least {at_least} strings: {str(values)[:80]}")
    return tuple(values)
