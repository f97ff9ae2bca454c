"""Folders that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from fq_toolkit.training.errors import RunError
from fq_toolkit.training.storage.atomic import explain, sync_folder


@contextmanager
def whole_folder(folder: str | Path, *, replaces: str | None = None) -> Iterator[Path]:
    """Fill a folder beside its place, and rename it into place when the block has ended well.

    A crash or a full disk leaves what was there before.  (A kill between the two renames that replace an
    earlier folder leaves both, whole, under the names ``.NAME.PID.old`` and ``.NAME.PID.tmp``.) What a killed
    process of the same number left beside a whole folder is removed; a link stays a link.

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
    shutil.rmtree(part, ignore_errors=True)  # numbers of processes come again, in containers at once
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
    except (OSError, SafetensorError) as error:  # the second one is what a full disk is to safetensors
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
