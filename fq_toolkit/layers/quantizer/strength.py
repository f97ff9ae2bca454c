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

    def __reduce__(self) -> tuple[type[Schedule], tuple[Any]]:
        return Schedule, (self.function,)


def ask(function: Callable[[int], float], step: int) -> float:
    """What a schedule says for a number of updates.

    Raises:
        ValueError: something outside [0, 1].
    """
    return between("strength(step)", float(function(step)), 0, 1)


# An op, so that a compiled graph asks in every step: traced, what the schedule says would become a constant
# of the graph, and each step would compile another one.
@torch.library.custom_op("fq_toolkit::scheduled_strength", mutates_args=())
def scheduled_strength(step: Tensor, schedule: int) -> Tensor:
    """The strength now, float64 on the CPU; ``step`` is there too, so that no step waits for a device."""
    return torch.tensor(ask(_SCHEDULES[schedule], int(step)), dtype=torch.float64, device="cpu")


@scheduled_strength.register_fake
def _(step: Tensor, schedule: int) -> Tensor:
    return torch.empty((), dtype=torch.float64, device="cpu")
