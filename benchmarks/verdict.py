"""A target and what was found: what every page and every list of targets shows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Verdict:
    """One target: what was wanted, what was found (None: not measured), over how many shapes.

    ``shown`` is what was found with its unit, where it is no ratio.
    """

    text: str
    wanted: str
    value: float | None
    met: bool | None
    detail: str = ""
    percent: bool = False
    shown: str = ""

    @property
    def found(self) -> str:
        """The value for a table."""
        if self.value is None:
            return "not measured"
        if self.shown:
            return self.shown
        return f"{100 * self.value:.3g} %" if self.percent else f"{self.value:.2f}x"

    @property
    def word(self) -> str:
        """met, missed or not measured."""
        return "not measured" if self.met is None else ("met" if self.met else "missed")


def geometric_mean(values: Iterable[float]) -> float | None:
    """Return the geometric mean; None of no values."""
    listed = list(values)
    return float(np.exp(np.mean(np.log(listed)))) if listed else None
