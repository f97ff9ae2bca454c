"""Cached files: each carries its checksum, and a damaged one is made again."""

import hashlib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from fq_toolkit.cache import cache_folder
from fq_toolkit.training.atomic import explain, write_atomic
from fq_toolkit.training.errors import RunError

logger = logging.getLogger("fq_toolkit")

_DIGEST_SIZE = hashlib.sha256().digest_size


def key_of(parts: Iterable[str | bytes]) -> str:
    """Return a name for content that depends on these texts or bytes and nothing else.

    Example:
        >>> key_of(["ab", "c"]) == key_of(["a", "bc"])
        False
    """
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big"))  # or ("ab", "c") and ("a", "bc") would be one key
        digest.update(data)
    return digest.hexdigest()[:32]


def cached_bytes(name: str, make: Callable[[], bytes]) -> bytes:
    """Return the content of a file of the cache; make and write it if it is missing or damaged.

    A cache that cannot be written costs a warning and nothing else.

    Args:
        name: of the file, which alone decides its content.
        make: returns the content.
    """
    path = cache_folder() / "optimus" / name
    cached = _read(path)
    if cached is not None:
        return cached
    content = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, hashlib.sha256(content).digest() + content)
    except (OSError, RunError) as error:
        reason = explain(error) if isinstance(error, OSError) else str(error)
        logger.warning("not kept for the next time in %s: %s", path.parent, reason)
    return content


def _read(path: Path) -> bytes | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    digest, content = data[:_DIGEST_SIZE], data[_DIGEST_SIZE:]
    if hashlib.sha256(content).digest() == digest:
        return content
    logger.warning("%s is damaged and is made again", path)
    return None
