"""What a file may cost in memory, checked against its size and this machine before any allocation."""

import os
import stat
from pathlib import Path

from fq_toolkit.training.errors import ConfigError

# Real arrays of pixels compress 1.5 to 20 times; zip bombs a thousand times.
PACKING = 100
# Below this size a high compression ratio is not worth refusing.
HARMLESS = 256 * 2**20


def regular_size(path: Path) -> int:
    """Return the size of a regular file. Pipes and devices would block or never end.

    Raises:
        ConfigError: when it is something else, or not there.
    """
    try:
        about = path.stat()
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(about.st_mode):
        raise ConfigError(f"{path} is no regular file (a pipe, a device or a folder); give a file")
    return about.st_size


def machine_memory() -> int:
    """Return the bytes that this process may use: the least of machine, container and resource limit."""
    limits = []
    try:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        limits.append(16 * 2**30)  # a system without these names
    try:
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        pass  # no container, or "max"
    try:
        import resource

        soft = resource.getrlimit(resource.RLIMIT_AS)[0]
        limits += [soft] if soft > 0 else []
    except (ImportError, OSError):
        pass
    return max(1, min(limits))


def demand_memory(path: Path, needed: int, *, stored: int) -> None:
    """Refuse an array, as a file announces it, that this machine cannot hold or that no image file holds.

    Args:
        path: the file, for the message.
        needed: bytes of the array.
        stored: bytes in which the file holds it.

    Raises:
        ConfigError: saying what is announced, and what to do.
    """
    if needed > HARMLESS and needed > PACKING * stored:
        raise ConfigError(
            f"{path} would unpack {stored:,} bytes to {needed:,}, over {PACKING} times as many; "
            "no images pack like that"
        )
    if 2 * needed > machine_memory():  # it is copied once, where its axes change
        raise ConfigError(
            f"{path} holds an array of {needed:,} bytes, and half of this machine's memory is "
            f"{machine_memory() // 2:,}; give an image folder or a zip archive, which stay on disk"
        )
