"""How far features go towards their centroids: a number or a schedule, on which no compiled graph depends."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fq_toolkit.layers.checks import between

_KEYS = itertools.count()
_SCHEDULES: dict[int, Callable[[int], float]] = {}


class Schedule:
    """A function of the number of updates, under a number by which a graph can ask for it.

    Copies and pickles register anew: a number means nothing in another process.
    """

    def __init__(self, function: Callable[[int], float]) -> None:
        self.function = function
        self.key = next(_KEYS)
        _SCHEDULES[self.key] = function

    def at(self, step: int) -> float:
        """Return what the schedule says for a number of updates; ValueError for something outside [0, 1]."""
        return _ask(self.function, step)

    def __reduce__(self) -> tuple[type[Schedule], tuple[Any]]:
        return Schedule, (self.function,)


class Strength:
    """What a layer was told: a number in [0, 1] or a schedule.

    Attributes:
        number: the number; 1 under a schedule.
        schedule: the schedule, if there is one.
    """

    def __init__(self) -> None:
        self.number = 1.0
        self.schedule: Schedule | None = None
        self._tensor: Tensor | None = None

    def set(self, value: float | Callable[[int], float]) -> None:
        """Take over what the user says.

        Raises:
            TypeError: neither a number nor a function.
            ValueError: a number outside [0, 1].
        """
        if callable(value):
            self.schedule, self.number = Schedule(value), 1.0
            return
        self.schedule, self.number = None, between("strength", value, 0, 1)
        # Full strength, which hardly anybody ever changes, needs no tensor. Once there is one it stays, so
        # that a warm-up that is set from outside compiles nothing when it ends.
        if self._tensor is None and self.number != 1:
            self._tensor = torch.empty((), dtype=torch.float64, device="cpu")
        if self._tensor is not None:
            self._tensor.fill_(self.number)

    def for_graph(self, commits: Tensor) -> float | Tensor:
        """Return the strength for a compiled graph.

        Args:
            commits: int64 scalar on the CPU, the number of updates so far.
        """
        if self.schedule is not None:
            return scheduled_strength(commits, self.schedule.key)
        return 1.0 if self._tensor is None else self._tensor


def _ask(function: Callable[[int], float], step: int) -> float:
    return between("strength(step)", float(function(step)), 0, 1)


# An op, so that a compiled graph asks in every step: traced, what the schedule says would become a constant
# of the graph, and each step would compile another one.
@torch.library.custom_op("fq_toolkit::scheduled_strength", mutates_args=())
def scheduled_strength(step: Tensor, schedule: int) -> Tensor:
    """Return the strength now, float64 on the CPU; ``step`` is there too, so no step waits for a device."""
    return torch.tensor(_ask(_SCHEDULES[schedule], int(step)), dtype=torch.float64, device="cpu")


@scheduled_strength.register_fake
def _(step: Tensor, schedule: int) -> Tensor:
    return torch.empty((), dtype=torch.float64, device="cpu")
