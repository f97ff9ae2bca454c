"""Checks of settings, with messages that name the setting."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any


def at_least_one(name: str, value: Any) -> int:
    """Return an integer if it is positive, else raise TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, Integral):  # NumPy's integers are such too
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return int(value)


def between(name: str, value: Any, low: float, high: float, open_above: bool = False) -> float:
    """Return a number if it is in ``[low, high]`` or ``[low, high)``, else raise TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    number = float(value)
    open_above = open_above or math.isinf(high)
    inside = low <= number < high if open_above else low <= number <= high
    if not inside:  # which NaN is not, as it compares False with everything
        raise ValueError(f"{name} must be in [{low:g}, {high:g}{')' if open_above else ']'}, got {value}")
    return number


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """Return a name if it is one of those allowed, else raise ValueError."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value
