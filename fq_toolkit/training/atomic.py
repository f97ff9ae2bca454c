"""Files and folders that are there whole or not at all: temporary name, fsync, rename."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

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


@contextmanager
def whole_folder(folder: str | Path, *, replaces: str | None = None) -> Iterator[Path]:
    """Fill a folder under a temporary name, and rename it into place when the block has ended well.

    A crash or a full disk leaves what was there before. (A kill between the two renames that replace an
    earlier folder leaves both, whole, under the names ``.NAME.PID.old`` and ``.NAME.PID.tmp``.) What a killed
    process with the same number left beside a whole folder is removed; a link stays a link.

    Args:
        folder: a new or an empty one, or one to replace.
        replaces: the file by which a folder is known as one that may be replaced.

    Yields:
        The folder to fill.

    Raises:
        ValueError: the folder holds something that must not be replaced.
        RunError: it cannot be written.
    """
    target = Path(os.path.realpath(folder))
    if target.exists() and not target.is_dir():
        raise ValueError(f"{str(folder)!r} is a file; give a folder")
    if target.is_dir() and any(target.iterdir()) and not (replaces and (target / replaces).is_file()):
        raise ValueError(f"{str(folder)!r} holds files that must not be lost; give a new folder")
    part, old = (target.with_name(f".{target.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    shutil.rmtree(part, ignore_errors=True)  # process numbers repeat, in containers on every start
    try:
        part.mkdir(parents=True)
        yield part
        for path in part.rglob("*"):
            _sync(path)
        if target.is_dir():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(target, old)
        try:
            os.rename(part, target)
        except OSError:
            if old.is_dir():
                os.rename(old, target)
            raise
        sync_folder(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:  # safetensors raises the second one on a full disk
        reason = explain(error) if isinstance(error, OSError) else str(error)
        raise RunError(f"cannot write {folder}: {reason}. Nothing half-written was left.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _sync(path: Path) -> None:
    """Bring a file or a folder to the disk."""
    if path.is_dir():
        sync_folder(path)
        return
    with suppress(PermissionError), open(path, "rb") as file:
        os.fsync(file.fileno())
