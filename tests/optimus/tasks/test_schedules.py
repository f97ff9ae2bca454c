"""The schedules of beta against the original's loop, as its description has it, in exact arithmetic."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit.optimus.tasks.schedules import BetaSchedule, cyclical_beta


def original(
    steps: int, cycles: int, ratio_zero: float, ratio_increase: float, start: float = 0.0, stop: float = 1.0
) -> list[float]:
    """The stop; then for each cycle the start, and a value that grows from it until it is above the stop."""
    values = [stop] * steps
    period = Fraction(steps, cycles)  # so that int(i + cycle * period) has no rounding error in it
    growth = (stop - start) / (float(period) * ratio_increase)
    for cycle in range(cycles):
        value, i = start, 0
        while value <= stop and int(i + cycle * period) < steps:
            if i < float(period) * ratio_zero:
                values[int(i + cycle * period)] = start
            else:
                values[int(i + cycle * period)] = value
                value += growth
            i += 1
    return values


@settings(max_examples=200, deadline=None)
@given(
    steps=st.integers(2, 120), cycles=st.integers(1, 12), zero=st.integers(0, 99),
    increase=st.integers(1, 100),
)  # fmt: skip
def test_equals_the_original_loop(steps: int, cycles: int, zero: int, increase: int) -> None:
    cycles = min(cycles, steps)
    ratios = {"ratio_zero": min(zero, 100 - increase) / 100, "ratio_increase": increase / 100}
    found = [cyclical_beta(step, steps, cycles=cycles, **ratios) for step in range(steps)]
    expected = original(steps, cycles, **ratios)
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 1e-9


@settings(max_examples=60, deadline=None)
@given(
    steps=st.integers(2, 120), cycles=st.integers(1, 12), zero=st.integers(0, 99),
    increase=st.integers(1, 100), start=st.floats(0.01, 1), rise=st.floats(0.1, 2),
)  # fmt: skip
def test_a_ramp_that_starts_above_zero_equals_the_original_loop(
    steps: int, cycles: int, zero: int, increase: int, start: float, rise: float
) -> None:
    cycles = min(cycles, steps)
    ratios = {"ratio_zero": min(zero, 100 - increase) / 100, "ratio_increase": increase / 100}
    schedule = BetaSchedule(steps=steps, cycles=cycles, beta=start + rise, start=start, **ratios)
    expected = original(steps, cycles, **ratios, start=start, stop=start + rise)
    found = [schedule(step).beta for step in range(steps)]
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 1e-9 * (1 + rise)


def test_a_start_above_beta_is_refused() -> None:
    with pytest.raises(ValueError, match="start"):
        BetaSchedule(steps=10, beta=0.5, start=0.6)


def test_the_first_value_of_the_ramp_is_zero_once_more() -> None:
    found = [cyclical_beta(step, 16, ratio_zero=0.5, ratio_increase=0.25) for step in range(16)]
    assert found == [0.0] * 8 + [0.0, 0.25, 0.5, 0.75] + [1.0] * 4


def test_ten_cycles_as_in_pretraining() -> None:
    found = [cyclical_beta(step, 80, cycles=10) for step in range(80)]
    assert found == [0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 1.0, 1.0] * 10


@settings(max_examples=60, deadline=None)
@given(
    steps=st.integers(2, 60), kind=st.sampled_from(["cyclical", "monotonic", "constant"]),
    beta=st.floats(0, 3), cycles=st.integers(1, 5), warm=st.integers(0, 30),
)  # fmt: skip
def test_a_schedule_stays_in_range_and_ends_at_beta(
    steps: int, kind: str, beta: float, cycles: int, warm: int
) -> None:
    warm = min(warm, steps - 1)
    schedule = BetaSchedule(steps, kind, beta, min(cycles, steps), autoencoder_steps=warm)
    phases = [schedule(step) for step in range(steps)]
    assert all(0 <= phase.beta <= beta for phase in phases)
    assert [phase.deterministic for phase in phases] == [True] * warm + [False] * (steps - warm)
    assert all(phase.beta == 0 for phase in phases[:warm])
    assert schedule(steps) == schedule(steps + 1000) == phases[-1]
    if kind == "constant":
        assert {phase.beta for phase in phases[warm:]} == {beta}
    if kind == "monotonic":
        values = [phase.beta for phase in phases[warm:]]
        assert values == sorted(values)
        plain = [cyclical_beta(i, steps - warm, ratio_zero=0.0) * beta for i in range(steps - warm)]
        assert values == plain


def test_a_jump_is_a_ramp_of_no_length() -> None:
    assert [cyclical_beta(i, 4, ratio_zero=0.5, ratio_increase=0) for i in range(4)] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "linear"}, "kind must be one of 'cyclical', 'monotonic', 'constant', got 'linear'"),
        ({"beta": -1.0}, "beta must be in"),
        ({"beta": float("nan")}, "beta must be in"),
        ({"cycles": 0}, "cycles must be at least 1"),
        ({"ratio_zero": 0.9, "ratio_increase": 0.2}, "their sum must be at most 1"),
        ({"autoencoder_steps": 10}, r"autoencoder_steps must be in \[0, 10\), got 10"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BetaSchedule(steps=10, **settings)  # type: ignore[arg-type]
