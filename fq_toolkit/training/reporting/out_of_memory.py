"""Running out of memory: recognised on every device, and told in a sentence."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fq_toolkit.training.errors import RunError

REMEDY = (
    "A smaller batch, shorter sequences or smaller networks need less; other programs may hold memory too."
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, of Python, the CPU allocator or a GPU.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes differ"))
        (True, False)
    """
    # By name, because torch need not be loaded: the command line asks for errors of every command.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text or "cannot allocate memory" in text
    )


@contextmanager
def memory_watch(place: Callable[[], str]) -> Iterator[None]:
    """Run a block and say where memory ran out, if it did.

    Args:
        place: returns a clause about what was done and what is safe; asked only then.

    Raises:
        RunError: when memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RunError) or not is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or ["no details"])[0]
        raise RunError(f"out of memory {place()} {REMEDY} ({reason})") from error
