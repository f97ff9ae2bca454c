"""Files that are there whole or not at all: temporary file, fsync, rename."""

import errno
import os
from contextlib import suppress
from pathlib import Path

from fq_toolkit.training.errors import RunError

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "the path is a folder",
}


def explain(error: OSError) -> str:
    """Return the reason of an OSError in words."""
    return _REASONS.get(error.errno or 0, error.strerror or str(error))


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Write a file so that a crash, a kill or a full disk leaves either the old file or the new one.

    Args:
        path: the file; its folder exists.
        data: its whole content.

    Raises:
        RunError: when it cannot be written; an earlier file of that name is untouched and nothing is left
            behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise RunError(f"cannot write {path}: {explain(error)}. Nothing half-written was left.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder durable. Systems that cannot open a folder (Windows) do without."""
    with suppress(PermissionError, NotImplementedError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
