"""Means over seeds and how far they can be trusted: Student's interval, differences paired by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fq_toolkit.training.errors import require

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean over a number of seeds with its standard deviation and its confidence interval.

    One seed says nothing about its spread: sd is NaN and the interval reaches from -inf to inf.
    """

    mean: float
    sd: float
    low: float
    high: float
    seeds: int

    @property
    def includes_zero(self) -> bool:
        """Whether no difference is among what the seeds allow."""
        return self.low <= 0 <= self.high

    @property
    def spread_is_unknown(self) -> bool:
        """Whether the interval means nothing: one seed, or equal values of a coarse metric."""
        return self.seeds < 2 or math.isclose(self.low, self.high, rel_tol=1e-9, abs_tol=1e-12)


def student_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Return the mean of independent, about normal values with Student's t interval (n - 1 degrees).

    Raises:
        ValueError: without values.
    """
    count = len(values)
    if count == 0:
        raise ValueError("no values were given; an interval needs the values of at least one seed")
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean, math.nan, -math.inf, math.inf, count)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    stats = require("scipy.stats", purpose="Student's interval")
    half = float(stats.t.ppf((1 + confidence) / 2, count - 1)) * sd / math.sqrt(count)
    return Interval(mean, sd, mean - half, mean + half, count)


def differences(baseline: Mapping[int, float], arm: Mapping[int, float]) -> dict[int, float]:
    """Return seed -> arm minus baseline, for the seeds that both have."""
    return {seed: value - baseline[seed] for seed, value in sorted(arm.items()) if seed in baseline}


def overhead(baseline: Mapping[int, float], arm: Mapping[int, float]) -> Interval | None:
    """Return by which share of the baseline the arm takes longer; None without a seed in common.

    The ratios are averaged as logarithms, so that twice as long and half as long cancel and no bound lies
    below -100 %. The standard deviation is that of the logarithms.
    """
    logarithms = [math.log(value / baseline[seed]) for seed, value in arm.items() if seed in baseline]
    if not logarithms:
        return None
    found = student_interval(logarithms)
    mean, low, high = (math.expm1(bound) for bound in (found.mean, found.low, found.high))
    return found._replace(mean=mean, low=low, high=high)
