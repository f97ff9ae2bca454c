"""The folder for files that can be made again: compiled kernels, feature extractors trained in place."""

import functools
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path


def cache_folder() -> Path:
    """Return ``$FQ_TOOLKIT_CACHE``, else ``fq-toolkit`` in the user's cache; it may not exist yet.

    Without a home, or with one that cannot be written (a container, a service, cron), it is the folder of
    `temporary_cache`.
    """
    chosen = os.environ.get("FQ_TOOLKIT_CACHE")
    if chosen:
        return Path(chosen)
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fq-toolkit"
    except (RuntimeError, KeyError):  # neither HOME nor an entry of this user
        return temporary_cache()
    return folder if _can_be_written(folder) else temporary_cache()


def _can_be_written(folder: Path) -> bool:
    """Return whether this user can write to a folder, or create it."""
    try:
        above = next(place for place in (folder, *folder.parents) if place.exists())
    except (OSError, ValueError, StopIteration):
        return False
    return above.is_dir() and os.access(above, os.W_OK | os.X_OK)


@functools.lru_cache(maxsize=1)
def temporary_cache() -> Path:
    """Return a folder of this user among the temporary files: the same one at each start if that is safe.

    Compiled libraries are loaded from it, so a folder that somebody else made or can write to is not used.
    """
    name = f"fq-toolkit-{os.getuid()}" if hasattr(os, "getuid") else "fq-toolkit"
    folder = Path(tempfile.gettempdir()) / name
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()  # not stat: a link may lead to a folder of somebody else's choice
        mine = not hasattr(os, "getuid") or status.st_uid == os.getuid()
        closed = os.name == "nt" or not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if stat.S_ISDIR(status.st_mode) and mine and closed:
            return folder
    return Path(tempfile.mkdtemp(prefix="fq-toolkit-"))
