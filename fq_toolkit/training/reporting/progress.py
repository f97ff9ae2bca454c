"""Progress: a live bar on a terminal, a line every logged step elsewhere, the log inside a library."""

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol, TextIO

from fq_toolkit.training.errors import require
from fq_toolkit.training.reporting.output import Outlet, printable

log = logging.getLogger("fq_toolkit")


class Reporter(Protocol):
    """What the training loop tells while it runs."""

    def start(self, *, done: int, total: int) -> None:
        """Begin at ``done`` of ``total`` steps."""

    def advance(self, step: int) -> None:
        """One step is done; called often and must be cheap."""

    def values(self, step: int, values: Mapping[str, float]) -> None:
        """New means of the metrics."""

    def note(self, text: str) -> None:
        """Say one sentence."""

    def stop(self) -> None:
        """End the display."""


def format_duration(seconds: float) -> str:
    """Return a duration as ``1:05`` or ``2:03:04``.

    Example:
        >>> format_duration(65)
        '1:05'
    """
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def format_values(values: Mapping[str, float]) -> str:
    """Return ``panel/curve`` metrics as one line, grouped by panel; usage in percent.

    Example:
        >>> format_values({"loss/d": 1.23456, "loss/g": -0.5, "usage/block0": 0.5, "usage/block1": 1})
        'loss d 1.23 g -0.5  usage 50 100 %'
    """
    panels: dict[str, list[str]] = {}
    for name, value in values.items():
        panel, _, curve = name.partition("/")
        text = f"{100 * value:.0f}" if panel == "usage" else f"{curve} {value:.3g}".lstrip()
        panels.setdefault(panel, []).append(text)
    return "  ".join(
        f"{panel} {' '.join(texts)}{' %' if panel == 'usage' else ''}" for panel, texts in panels.items()
    )


class SilentReporter:
    """Says nothing: for the processes beside the main one."""

    def start(self, *, done: int, total: int) -> None:
        """See `Reporter`."""

    def advance(self, step: int) -> None:
        """See `Reporter`."""

    def values(self, step: int, values: Mapping[str, float]) -> None:
        """See `Reporter`."""

    def note(self, text: str) -> None:
        """See `Reporter`."""

    def stop(self) -> None:
        """See `Reporter`."""


class GuardedReporter:
    """Passes everything on to another reporter until that cannot write any more, and is silent from then on.

    A reader that went away, a closed terminal or a full disk behind a stream is no reason to end a training.

    Args:
        reporter: the other one.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def _pass_on(self, method: str, *arguments: Any, **named: Any) -> None:
        try:
            getattr(self._reporter, method)(*arguments, **named)
        except (OSError, ValueError) as error:  # ValueError: a closed stream, or text it cannot encode
            self._reporter = SilentReporter()
            log.warning("no progress is shown any more, and training goes on: %s", error)

    def start(self, *, done: int, total: int) -> None:
        """See `Reporter`."""
        self._pass_on("start", done=done, total=total)

    def advance(self, step: int) -> None:
        """See `Reporter`."""
        self._pass_on("advance", step)

    def values(self, step: int, values: Mapping[str, float]) -> None:
        """See `Reporter`."""
        self._pass_on("values", step, values)

    def note(self, text: str) -> None:
        """See `Reporter`."""
        self._pass_on("note", text)

    def stop(self) -> None:
        """See `Reporter`."""
        self._pass_on("stop")


class LineReporter:
    """One line per logged step, for files, pipes and job logs.

    Args:
        stream: where to write; None sends the lines to ``logging.getLogger("fq_toolkit")``.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._total = self._first = 0
        self._started = 0.0

    def start(self, *, done: int, total: int) -> None:
        """See `Reporter`."""
        self._first, self._total, self._started = done, total, time.monotonic()

    def advance(self, step: int) -> None:
        """See `Reporter`."""

    def values(self, step: int, values: Mapping[str, float]) -> None:
        """See `Reporter`."""
        passed = time.monotonic() - self._started  # of this session: a resumed run is as fast as it is now
        left = passed / max(1, step - self._first) * (self._total - step)
        width = len(str(self._total))
        times = f"{format_duration(passed)} < {format_duration(left)} left"
        self.note(f"step {step:{width}d}/{self._total}  {format_values(values)}  [{times}]")

    def note(self, text: str) -> None:
        """See `Reporter`."""
        if self._stream is None:
            log.info(text)
        else:
            self._stream.write(text + "\n")
            self._stream.flush()  # job logs are read while the job runs

    def stop(self) -> None:
        """See `Reporter`."""


class BarReporter:
    """A live bar with the newest metrics and the time left, for terminals."""

    def __init__(self, stream: TextIO) -> None:
        # rich only where a bar is drawn: a log file does without it
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.description}"),
            console=Console(file=stream),
            refresh_per_second=4,
        )
        self._task: Any = None

    def start(self, *, done: int, total: int) -> None:
        """See `Reporter`."""
        self._task = self._progress.add_task("", total=total, completed=done)
        self._progress.start()

    def advance(self, step: int) -> None:
        """See `Reporter`."""
        self._progress.update(self._task, completed=step)

    def values(self, step: int, values: Mapping[str, float]) -> None:
        """See `Reporter`."""
        from rich.markup import escape  # lazy, as above

        self._progress.update(self._task, description=escape(printable(format_values(values))))

    def note(self, text: str) -> None:
        """See `Reporter`."""
        self._progress.console.print(printable(text), markup=False, highlight=False)

    def stop(self) -> None:
        """See `Reporter`."""
        self._progress.stop()


def make_reporter(stream: TextIO | None = None) -> Reporter:
    """Return the bar on a terminal, and lines elsewhere.

    Raises:
        MissingExtraError: on a terminal without rich.
    """
    stream = stream or sys.stderr
    terminal = stream.terminal if isinstance(stream, Outlet) else stream if stream.isatty() else None
    if terminal is None:
        return LineReporter(stream)
    require("rich.progress", purpose="the progress bar")
    return BarReporter(terminal)
