"""Ranges of options: every option of every trainer refuses what lies outside of its range, no more."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fq_toolkit.fqgan.gan.config import FQGANConfig
from fq_toolkit.fqgan.ugatit.config import UGATITConfig
from fq_toolkit.optimus.tasks.dialog.training import DialogConfig
from fq_toolkit.optimus.tasks.labels.training import LabelConfig
from fq_toolkit.optimus.tasks.vae.config import OptimusConfig
from fq_toolkit.prevalent.model.config import PrevalentConfig
from fq_toolkit.prevalent.tasks.hanna.config import HannaConfig
from fq_toolkit.prevalent.tasks.ndh.config import NDHConfig
from fq_toolkit.prevalent.tasks.pretraining.config import PretrainingConfig
from fq_toolkit.prevalent.tasks.r2r.config import R2RConfig
from fq_toolkit.prevalent.tasks.speaker.config import SpeakerConfig
from fq_toolkit.training import bounds
from fq_toolkit.training.bounds import Bounds, Fraction, NotNegative, Positive, Rate, Share, check_bounds
from fq_toolkit.training.errors import ConfigError

CONFIGS: tuple[Any, ...] = (
    FQGANConfig, UGATITConfig, OptimusConfig, LabelConfig, DialogConfig, PretrainingConfig, R2RConfig,
    NDHConfig, HannaConfig, SpeakerConfig, PrevalentConfig,
)  # fmt: skip


@dataclass(frozen=True)
class Base:
    steps: Positive[int] = 10
    decay: Fraction = 0.5
    rate: Rate = 0.1
    share: Share = 0.5
    weight: NotNegative[float] = 0.0
    betas: tuple[Fraction, Fraction] = (0.0, 0.9)
    limit: Positive[int] | None = None
    low: Annotated[int, Bounds(2, 5)] = 2
    free: int = -3

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class Derived(Base):
    steps: int = 20  # another default, the same range
    names: tuple[str, ...] = field(default=("a",))


@given(
    steps=st.integers(-3, 3), decay=st.floats(-2, 2), rate=st.floats(-2, 2), share=st.floats(-2, 2),
    weight=st.floats(-2, 2), beta=st.floats(-2, 2), limit=st.none() | st.integers(-2, 2),
    low=st.integers(0, 7),
)  # fmt: skip
def test_exactly_the_values_within_pass(
    steps: int, decay: float, rate: float, share: float, weight: float, beta: float, limit: Any, low: int
) -> None:
    within = [
        ("steps", steps >= 1), ("decay", 0 <= decay < 1), ("rate", 0 < rate < 1), ("share", 0 <= share <= 1),
        ("weight", weight >= 0), ("betas", 0 <= beta < 1), ("limit", limit is None or limit >= 1),
        ("low", 2 <= low <= 5),
    ]  # fmt: skip
    values = dict(steps=steps, decay=decay, rate=rate, share=share, weight=weight, limit=limit, low=low)
    for kind in (Base, Derived):
        if all(fine for _, fine in within):
            kind(**values, betas=(beta, 0.5))
        else:
            first = next(name for name, fine in within if not fine)
            with pytest.raises(ConfigError, match=f"^{first} (is|are) .*; expected "):
                kind(**values, betas=(0.5, beta))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_is_in_no_range(value: float) -> None:
    for name in ("decay", "rate", "share", "weight"):
        with pytest.raises(ConfigError, match=name):
            Base(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("steps", 0, "at least 1"),
        ("weight", -1.0, "0 or more, and finite"),
        ("rate", 1.0, "0 < rate < 1"),
        ("decay", 1.0, "0 <= decay < 1"),
        ("share", 2.0, "0 to 1"),
        ("low", 6, "2 to 5"),
    ],
)
def test_the_range_is_told_in_words(name: str, value: float, words: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is {value}; expected {words}$"):
        Base(**{name: value})


@pytest.mark.parametrize("config_class", CONFIGS, ids=lambda c: c.__name__)
def test_every_number_of_a_trainer_has_a_range_or_a_check_of_its_own(config_class: Any) -> None:
    """Minus infinity, or a huge negative integer, is in no range: an option that takes it is not checked."""
    required = {"vocab_size": 30522, "vision_size": 2176} if config_class is PrevalentConfig else {}
    bounded = bounds._bounded(config_class)
    for option in dataclasses.fields(config_class):
        if option.name in bounded or not isinstance(option.default, (int, float)):
            continue
        if isinstance(option.default, bool):
            continue
        with pytest.raises(ConfigError, match=option.name):
            config_class(**{**required, option.name: -(10**9)})
