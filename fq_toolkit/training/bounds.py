"""Ranges of options: written beside the type, checked by one function.

@dataclass(frozen=True)
class WalkConfig:
steps: Positive[int] = 100
dropout: Fraction = 0.1

def __post_init__(self) -> None:
check_bounds(self)
"""

import functools
import math
import types
from typing import Annotated, Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from fq_toolkit.training.errors import ConfigError

Number = TypeVar("Number", int, float)


class Bounds(NamedTuple):
    """A range of finite numbers.

    low: the lower end.
    high: the upper end.
    low_in: whether the lower end belongs to it.
    high_in: whether the upper end belongs to it.
    """

    low: float
    high: float = math.inf
    low_in: bool = True
    high_in: bool = True

    def hold(self, value: float) -> bool:
        """Return whether a number lies within; NaN and infinity never do."""
        above = self.low <= value if self.low_in else self.low < value
        below = value <= self.high if self.high_in else value < self.high
        return math.isfinite(value) and above and below

    def told(self, name: str, *, whole: bool) -> str:
        """Return the range of an option in words.

        Args:
            name: of the option.
            whole: whether it is an integer.
        """
        if math.isinf(self.high):
            if whole:
                return f"at least {self.low if self.low_in else int(self.low) + 1}"
            return (
                f"{self.low:g} or more, and finite" if self.low_in else f"more than {self.low:g}, and finite"
            )
        if self.low_in and self.high_in:
            return f"{self.low} to {self.high}"
        left, right = ("<=" if end else "<" for end in (self.low_in, self.high_in))
        return f"{self.low:g} {left} {name} {right} {self.high:g}"


def at_least(low: float) -> Bounds:
    """Return the range from a number on."""
    return Bounds(low)


def below(high: float) -> Bounds:
    """Return the range from 0 to a number, which is left out."""
    return Bounds(0, high, high_in=False)


Positive = Annotated[Number, Bounds(0, low_in=False)]
"""More than 0: of integers, at least 1."""
NotNegative = Annotated[Number, at_least(0)]
"""At least 0."""
Share = Annotated[float, Bounds(0, 1)]
"""A part of a whole, 0 to 1: a probability, a mixture."""
PositiveShare = Annotated[float, Bounds(0, 1, low_in=False)]
"""0 < value <= 1: a part of a whole that is not nothing."""
Fraction = Annotated[float, below(1)]
"""0 <= value < 1: a decay, a dropout."""
Rate = Annotated[float, Bounds(0, 1, low_in=False, high_in=False)]
"""0 < value < 1: a learning rate."""


def check_bounds(config: Any) -> None:
    """Check all options of a configuration whose type says what range they have.

    None passes where the type allows it; of tuples every entry is checked.

    Args:
        config: a dataclass.

    Raises:
        ConfigError: naming the first option that is out of its range, and the range.
    """
    config_class: type = type(config)
    for name, (bounds, whole) in _bounded(config_class).items():
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not bounds.hold(number):
                verb = "are" if isinstance(value, tuple) else "is"
                raise ConfigError(f"{name} {verb} {value}; expected {bounds.told(name, whole=whole)}")


@functools.cache
def _bounded(config_class: type) -> dict[str, tuple[Bounds, bool]]:
    """Return option -> (its range, whether it is an integer), for the options that have one."""
    options = {}
    # From the base on: an option that gets another default below keeps the range of the base.
    for part_of in reversed(config_class.__mro__):
        for name, hint in get_type_hints(part_of, include_extras=True).items():
            for part, bounds in _annotations(hint):
                options[name] = (bounds, part is int)
    return options


def _annotations(hint: Any) -> list[tuple[Any, Bounds]]:
    """Return the (type, range) pairs within a type: beside None, or in a tuple."""
    if get_origin(hint) is Annotated:
        part, *extras = get_args(hint)
        return [(part, extra) for extra in extras if isinstance(extra, Bounds)]
    if get_origin(hint) in (Union, types.UnionType, tuple):
        return [pair for part in get_args(hint) for pair in _annotations(part)]
    return []
