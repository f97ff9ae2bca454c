"""What the commands share: user errors without a traceback, seeds, and what is typed."""

import io
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from fq_toolkit.training.errors import ConfigError

_SEEDS = 2**32  # what numpy, scikit-learn and torch all take


@contextmanager
def user_errors() -> Iterator[None]:
    """Let the command line print what the model refuses, without a traceback."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check_seed(seed: int) -> None:
    """Refuse a seed that not all random number generators take.

    Raises:
        ConfigError: below 0 or too large.
    """
    if not 0 <= seed < _SEEDS:
        raise ConfigError(f"seed is {seed}; expected 0 to {_SEEDS - 1}")


def typed_lines() -> Iterable[str]:
    """Return the standard input line by line, U+FFFD in place of bytes that are not UTF-8."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    return sys.stdin
