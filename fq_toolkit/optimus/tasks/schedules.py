"""Schedules of beta, the weight of the KL term.

Source: arXiv 2004.04092, section 3.3, after Fu et al. (2019), "Cyclical Annealing Schedule: A Simple Approach
to Mitigating KL Vanishing", arXiv 1903.10145.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from fq_toolkit.layers.checks import at_least_one, between, one_of

KINDS = ("cyclical", "monotonic", "constant")


class Phase(NamedTuple):
    """The settings of one step.

    Attributes:
        beta: weight of the KL term.
        deterministic: whether the decoder reads the mean of the posterior, without noise.
    """

    beta: float
    deterministic: bool


@dataclass(frozen=True)
class BetaSchedule:
    """Beta as a function of the step; calling it returns a `Phase`.

    An autoencoder warm-up comes first: no KL term and no noise. The schedule itself covers the other steps:

    - ``"cyclical"``: ``cycles`` times ``start``, a linear ramp, ``beta``; see `cyclical_beta`. The release
      has one cycle for fine-tuning and ten for pretraining.
    - ``"monotonic"``: one cycle that starts with the ramp, over ``ratio_increase`` of the steps.
    - ``"constant"``: ``beta`` from the start.

    Args:
        steps: of the whole training, with the warm-up.
        kind: "cyclical", "monotonic" or "constant".
        beta: the largest weight.
        cycles: number of cycles.
        ratio_zero: share of a cycle with weight ``start``.
        ratio_increase: share of a cycle in which the weight rises.
        autoencoder_steps: steps of the warm-up.
        start: the weight where a cycle, or a ramp, begins; not above ``beta``.

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
    start: float = 0.0

    def __post_init__(self) -> None:
        one_of("kind", self.kind, KINDS)
        at_least_one("steps", self.steps)
        at_least_one("cycles", self.cycles)
        between("beta", self.beta, 0, math.inf)
        between("start", self.start, 0, self.beta)
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
        """Return the settings of a step, from 0; steps after the last one have its settings."""
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
        return Phase(self.start + (self.beta - self.start) * share, False)


def cyclical_beta(
    step: int, steps: int, *, cycles: int = 1, ratio_zero: float = 0.5, ratio_increase: float = 0.25
) -> float:
    """Compute the cyclical schedule of the release: in each cycle 0, then a linear ramp to 1, then 1.

    With the period ``P = steps / cycles`` and the position i in the cycle,

        beta_i = 0                                        for i < ratio_zero P
        beta_i = min(1, (i - i_0) / (ratio_increase P))   else, with i_0 = ceil(ratio_zero P)

    The first value of the ramp is 0 as well, one step more than in the paper's formula. The release computes
    it this way, and so its runs can be repeated.

    Source: arXiv 1903.10145, section 4, with a part at 0 added by arXiv 2004.04092, section 3.3.

    Args:
        step: from 0.
        steps: of all cycles together.
        cycles: how many; the period need not be a whole number.
        ratio_zero: share of a period with 0.
        ratio_increase: share of a period with the ramp; 0 jumps to 1.

    Returns:
        A number in [0, 1].
    """
    cycle = ((step + 1) * cycles - 1) // steps  # in integers: cycle c starts at floor(c P)
    position = step - cycle * steps // cycles
    period = steps / cycles
    if position < period * ratio_zero:
        return 0.0
    if ratio_increase == 0:
        return 1.0
    return min(1.0, (position - math.ceil(period * ratio_zero)) / (period * ratio_increase))
