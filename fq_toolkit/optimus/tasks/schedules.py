"""How beta, the weight of the KL term, changes over training.

Source: arXiv 2004.04092, section 3.3, after "Cyclical Annealing Schedule", arXiv 1903.10145.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from fq_toolkit.layers.checks import at_least_one, between, one_of

KINDS = ("cyclical", "monotonic", "constant")


class Phase(NamedTuple):
    """What holds in one step.

    Attributes:
        beta: weight of the KL term.
        deterministic: whether the decoder gets the mean of the posterior, without noise.
    """

    beta: float
    deterministic: bool


@dataclass(frozen=True)
class BetaSchedule:
    """Step -> `Phase`.

    An autoencoder warm-up comes first: no KL term and no noise.  The schedule proper has the steps after it.

    - ``"cyclical"``: ``cycles`` times 0, then a ramp, then ``beta``; see `cyclical_beta`.  The original has
      one cycle when it fine-tunes and ten when it pretrains.
    - ``"monotonic"``: one cycle that begins with the ramp, over ``ratio_increase`` of the steps.
    - ``"constant"``: ``beta`` at once.

    Args:
        steps: of the whole training, warm-up included.
        kind: "cyclical", "monotonic" or "constant".
        beta: the largest weight.
        cycles: how often it starts again.
        ratio_zero: part of a cycle with weight 0.
        ratio_increase: part of a cycle in which the weight grows.
        autoencoder_steps: steps of the warm-up.

    Raises:
        ValueError: a value out of range, or a warm-up that leaves no step.

    Example:
        >>> schedule = BetaSchedule(steps=10, autoencoder_steps=2, cycles=2)
        >>> [schedule(step).beta for step in range(10)]
        [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
        >>> schedule(1).deterministic, schedule(2).deterministic
        (True, False)
    """

    steps: int
    kind: str = "cyclical"
    beta: float = 1.0
    cycles: int = 1
    ratio_zero: float = 0.5
    ratio_increase: float = 0.25
    autoencoder_steps: int = 0

    def __post_init__(self) -> None:
        one_of("kind", self.kind, KINDS)
        at_least_one("steps", self.steps)
        at_least_one("cycles", self.cycles)
        between("beta", self.beta, 0, math.inf)
        between("ratio_zero", self.ratio_zero, 0, 1)
        between("ratio_increase", self.ratio_increase, 0, 1)
        if self.kind == "cyclical" and self.ratio_zero + self.ratio_increase > 1:
            raise ValueError(
                f"ratio_zero={self.ratio_zero} and ratio_increase={self.ratio_increase} are parts of a "
                "cycle; their sum must be at most 1"
            )
        if not 0 <= self.autoencoder_steps < self.steps:
            raise ValueError(
                f"autoencoder_steps must be in [0, {self.steps}), got {self.autoencoder_steps}: "
                "the warm-up is a part of the steps"
            )

    def __call__(self, step: int) -> Phase:
        """What holds in step ``step``, from 0; after the last step, what held in it."""
        if step < self.autoencoder_steps:
            return Phase(0.0, True)
        if self.kind == "constant":
            return Phase(self.beta, False)
        cyclical = self.kind == "cyclical"
        share = cyclical_beta(
            min(step, self.steps - 1) - self.autoencoder_steps,
            self.steps - self.autoencoder_steps,
            cycles=self.cycles if cyclical else 1,
            ratio_zero=self.ratio_zero if cyclical else 0.0,
            ratio_increase=self.ratio_increase,
        )
        return Phase(self.beta * share, False)


def cyclical_beta(
    step: int, steps: int, *, cycles: int = 1, ratio_zero: float = 0.5, ratio_increase: float = 0.25
) -> float:
    """The original's annealing in closed form: in each cycle 0, then a linear ramp to 1, then 1.

    With a period ``P = steps / cycles`` and the position i in the cycle, beta is 0 for ``i < ratio_zero P``
    and then ``(i - i_0) / (ratio_increase P)``, at most 1, where ``i_0`` is the first position of the ramp.
    So the ramp starts with one more 0, and its first value above 0 comes a step later than one would think.
    The original has it so, and so have we: its runs can be repeated.

    Args:
        step: from 0.
        steps: of all cycles together.
        cycles: how many; a period need not be a whole number.
        ratio_zero: part of a period with 0.
        ratio_increase: part of a period with the ramp; 0 is a jump.

    Returns:
        A number in [0, 1].
    """
    cycle = ((step + 1) * cycles - 1) // steps  # the last one that has begun: cycle c does at floor(c P)
    position = step - cycle * steps // cycles
    period = steps / cycles
    if position < period * ratio_zero:
        return 0.0
    if ratio_increase == 0:
        return 1.0
    return min(1.0, (position - math.ceil(period * ratio_zero)) / (period * ratio_increase))
