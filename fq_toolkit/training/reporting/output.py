"""Text for people: no name in it commands a terminal, and a stream that fails costs nothing but text."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, TextIO

# Controls but for tab and newline, DEL, the second set of controls, marks that turn the direction of text.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""Return text in which every character that a terminal would obey is written out.

    Example:
        >>> print(printable("cat\x1b[31m"))
        cat\x1b[31m
    """
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Outlet:
    """A stream for text in which names of files and classes stand, and that may fail at any time.

    On a terminal it escapes what would command it, which is why it says that it is none: whoever asks, to
    write colors, had better not. After the first failure it is silent; ``error`` has the reason.

    Args:
        stream: where the text goes; None, as of a process without a stream, is silent.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.error: Exception | None = None
        self._stream = stream
        with suppress(OSError, ValueError):
            self._is_terminal = False
            self._is_terminal = stream is not None and stream.isatty()

    @property
    def terminal(self) -> TextIO | None:
        """The stream itself, unescaped, if it is a terminal; else None."""
        return self._stream if self._is_terminal else None

    def write(self, text: str) -> int:
        """Write text, as far as the stream and its encoding allow."""
        stream = self._stream
        if stream is None or self.error is not None:
            return len(text)
        shown = printable(text) if self._is_terminal else text
        try:
            try:
                stream.write(shown)
            except UnicodeEncodeError:  # a path of bytes that are no text, or a narrow locale
                encoding = getattr(stream, "encoding", None) or "ascii"
                stream.write(shown.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError) as error:
            self._fail(error)
        return len(text)

    def flush(self) -> None:
        """Pass on what was written."""
        if self._stream is None or self.error is not None:
            return
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._fail(error)

    def isatty(self) -> bool:
        """Return False, see above."""
        return False

    def _fail(self, error: Exception) -> None:
        """Be silent from now on, and keep the interpreter from failing on what is still in the buffer."""
        self.error = error
        with suppress(OSError, ValueError, AttributeError):
            # The interpreter flushes at exit, and would end with status 120 on a pipe that nobody reads.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())  # type: ignore[union-attr]
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Outlets(NamedTuple):
    """The two streams of a program."""

    out: Outlet
    err: Outlet


@contextmanager
def outlets() -> Iterator[Outlets]:
    """Run a block with standard output and error behind `Outlet`; flush them at its end."""
    before = sys.stdout, sys.stderr
    both = Outlets(Outlet(sys.stdout), Outlet(sys.stderr))
    sys.stdout, sys.stderr = both
    try:
        yield both
    finally:
        both.out.flush()
        both.err.flush()
        sys.stdout, sys.stderr = before
