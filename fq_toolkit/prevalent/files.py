"""Reading data files: what is wrong is said with the name of the file, and of the item."""

import json
from pathlib import Path
from typing import Any

_LFS = b"version https://git-lfs.github.com/spec/"


class DataError(ValueError):
    """A data file or one of its items is unusable; the message names the file, the item and the remedy."""


def check_readable(path: Path) -> None:
    """Check that a file exists, has content, and is not a git-LFS pointer.

    Raises:
        DataError: otherwise.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(len(_LFS))
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if head == _LFS:
        raise DataError(f"{path} is a git-LFS pointer, not the data: run `git lfs pull` in its repository")
    if not head:
        raise DataError(f"{path} is empty")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Args:
        path: the file.

    Returns:
        Its content.

    Raises:
        DataError: when it is missing, empty, a git-LFS pointer, truncated or no JSON.
    """
    check_readable(path)
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is not valid JSON ({error}): truncated or damaged; fetch it again"
        ) from error


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read a JSON file that holds a list of objects.

    Raises:
        DataError: when it is unreadable, or holds something else.
    """
    records = read_json(path)
    if not isinstance(records, list):
        raise DataError(f"{path} holds {type(records).__name__}; expected a JSON list of items")
    for position, record in enumerate(records):
        if not isinstance(record, dict):
            raise DataError(f"{path}: item {position} is {type(record).__name__}; expected a JSON object")
    return records


def field(record: dict[str, Any], name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """Return one field of an item.

    Args:
        record: the item.
        name: of the field.
        kind: its type, or several; a bool is no number.
        where: file and item, for the message.

    Raises:
        DataError: when it is absent or of another type.
    """
    if name not in record:
        raise DataError(f"{where} has no field {name!r}; it has {', '.join(map(repr, sorted(record)))}")
    value = record[name]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise DataError(
            f"{where}: {name} is {type(value).__name__}; expected {' or '.join(k.__name__ for k in kinds)}"
        )
    return value


def strings(record: dict[str, Any], name: str, where: str, *, at_least: int = 1) -> tuple[str, ...]:
    """Return a field that is a list of strings.

    Raises:
        DataError: when it is something else, or too short.
    """
    values = field(record, name, list, where)
    if len(values) < at_least or not all(isinstance(value, str) for value in values):
        raise DataError(f"{where}: {name} is no list of at least {at_least} strings: {str(values)[:80]}")
    return tuple(values)
