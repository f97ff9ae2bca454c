"""Stopping politely: the first Ctrl-C or SIGTERM lets the current step finish and the run be saved."""

import signal
import threading
from types import FrameType, TracebackType

# Whoever sends these twice means it.
_URGENT = (signal.SIGINT, signal.SIGTERM)
# A terminal that closes, and what Slurm is told to send some time before a job's end (--signal=USR1@300): a
# SIGTERM often follows, which is not a second request.
_WARNINGS = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGUSR1") if hasattr(signal, name))


class StopRequest:
    """Context manager that turns SIGINT, SIGTERM, SIGHUP and SIGUSR1 into a flag.

    ``signal`` is None or the number of the first signal that came. A second SIGINT or SIGTERM ends the
    program at once, as without this class. A SIGHUP that is ignored, as under ``nohup``, stays ignored.
    Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (*_URGENT, *_WARNINGS):
                if number not in _URGENT and signal.getsignal(number) is signal.SIG_IGN:
                    continue
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore(*self._previous)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = number
        if number in _URGENT:
            self._restore(*_URGENT)  # the second one ends the program at once

    def _restore(self, *numbers: int) -> None:
        for number in numbers:
            if number in self._previous:
                signal.signal(number, self._previous.pop(number))  # type: ignore[arg-type]
