"""The best checkpoint of a run: which one it is, by which figure, and how a user asks for it."""

import json
import math
from pathlib import Path
from typing import Literal, NamedTuple

from fq_toolkit.training.atomic import write_atomic
from fq_toolkit.training.errors import ConfigError

Which = int | Literal["best", "last"]
"""A checkpoint: the best, the newest, or that of a step."""


class Selection(NamedTuple):
    """The figure by which the best checkpoint of a run is kept.

    column: of the evaluation, as ``metrics.csv`` names it.
    highest: whether more is better.
    """

    column: str
    highest: bool


class Best(NamedTuple):
    """The best checkpoint so far.

    step: when it was saved.
    column: the figure that chose it.
    value: what that figure was.
    """

    step: int
    column: str
    value: float

    def yields_to(self, value: float, selection: Selection) -> bool:
        """Return whether a new value takes its place; of equal ones the later stays, which trained longer."""
        if self.column != selection.column:
            return True
        return value >= self.value if selection.highest else value <= self.value


def read_best(path: Path) -> Best | None:
    """Return what ``best.json`` says; None when there is none, or none that can be read.

    A pointer that is damaged costs nothing but the choice: the checkpoints themselves are whole.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        best = Best(int(record["step"]), str(record["column"]), float(record["value"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return best if math.isfinite(best.value) else None


def write_best(path: Path, best: Best) -> None:
    """Write ``best.json``."""
    write_atomic(path, (json.dumps(best._asdict()) + "\n").encode())


def parse_checkpoint(text: str | int | None) -> Which:
    """Read what a user gave as ``--checkpoint``.

    Args:
        text: ``best``, ``last`` or a step; None is ``last``.

    Raises:
        ConfigError: when it is none of these.
    """
    if text is None or text == "last":
        return "last"
    if text == "best":
        return "best"
    try:
        step = int(text)
    except ValueError:
        step = -1
    if step < 0:
        raise ConfigError(f"--checkpoint is {text!r}; expected best, last or the step of a checkpoint")
    return step
