"""Views and angle features."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fq_toolkit.prevalent.world.angles import (
    STEP,
    VIEW_ELEVATIONS,
    VIEW_HEADINGS,
    angle_features,
    nearest_view,
    snap,
    view_angle_features,
    wrap,
)

ANGLES = st.floats(-10, 10, allow_subnormal=False)
TILTS = st.floats(-math.pi / 2, math.pi / 2, allow_subnormal=False)


@given(heading=ANGLES, elevation=TILTS)
def test_snapping_goes_to_a_view_and_stays_there(heading: float, elevation: float) -> None:
    snapped, tilt, view = snap(heading, elevation)
    assert 0 <= snapped < 2 * math.pi
    assert abs(wrap(snapped - heading)) <= STEP / 2 + 1e-9
    assert (snapped, tilt) == pytest.approx((VIEW_HEADINGS[view], VIEW_ELEVATIONS[view]))
    assert snap(snapped, tilt) == (snapped, tilt, view)


@given(heading=ANGLES, elevation=TILTS, steps=st.integers(-12, 12))
def test_snapping_turns_with_the_heading(heading: float, elevation: float, steps: int) -> None:
    inside = abs(abs(wrap(snap(heading, 0)[0] - heading)) - STEP / 2) > 1e-6
    turned = snap(heading + steps * STEP, elevation)[2]
    view = snap(heading, elevation)[2]
    assert not inside or (turned - view - steps) % 12 == 0


@pytest.mark.parametrize(
    ("degrees", "view"),
    [(0, 12), (14.9, 12), (15, 13), (344.9, 23), (345, 12), (-15.1, 23), (376, 13), (360, 12)],
)
def test_halves_go_away_from_zero_and_twelve_is_zero(degrees: float, view: int) -> None:
    assert snap(math.radians(degrees), 0.0)[2] == view


@pytest.mark.parametrize(
    ("degrees", "row"), [(-90, 0), (-15.01, 0), (-15, 1), (0, 1), (15, 1), (15.01, 2), (80, 2)]
)
def test_elevations_snap_at_fifteen_degrees(degrees: float, row: int) -> None:
    assert snap(0.0, math.radians(degrees))[2] == 12 * row


@given(heading=ANGLES, elevation=TILTS)
def test_nearest_view_is_the_least_of_all_36(heading: float, elevation: float) -> None:
    best = min(
        range(36),
        key=lambda v: round(math.hypot(wrap(heading - VIEW_HEADINGS[v]), elevation - VIEW_ELEVATIONS[v]), 9),
    )
    found = int(nearest_view(np.array(heading), np.array(elevation)))

    def gap(view: int) -> float:
        return math.hypot(wrap(heading - VIEW_HEADINGS[view]), elevation - VIEW_ELEVATIONS[view])

    assert gap(found) == pytest.approx(gap(best), abs=1e-8)


@given(heading=ANGLES, elevation=TILTS, repeats=st.integers(1, 40))
def test_the_layouts_hold_the_same_numbers(heading: float, elevation: float, repeats: int) -> None:
    blocked = angle_features(heading, elevation, layout="blocked", dim=4 * repeats)
    mixed = angle_features(heading, elevation, layout="interleaved", dim=4 * repeats)
    np.testing.assert_array_equal(blocked.reshape(4, repeats).T.ravel(), mixed)
    assert np.abs(blocked.reshape(4, repeats)[:2, 0]).max() <= 1
    assert np.square(blocked).sum() == pytest.approx(2 * repeats, rel=1e-5)


@pytest.mark.parametrize("layout", ["blocked", "interleaved"])
def test_arrays_and_tensors_agree(layout: str) -> None:
    heading, elevation = np.random.default_rng(0).uniform(-3, 3, (2, 4, 5))
    by_array = angle_features(heading, elevation, layout=layout)
    by_tensor = angle_features(torch.from_numpy(heading), torch.from_numpy(elevation), layout=layout)
    assert by_array.shape == (4, 5, 128)
    np.testing.assert_allclose(by_tensor.numpy(), by_array, atol=1e-7)


@pytest.mark.parametrize("layout", ["blocked", "interleaved"])
def test_turning_agent_and_view_together_changes_nothing(layout: str) -> None:
    table = view_angle_features(layout=layout)
    views = np.arange(36)
    for turn in range(12):
        turned = (views + turn) % 12 + views // 12 * 12
        for step in range(12):
            np.testing.assert_array_equal(table[(step + turn) % 12][turned], table[step][views])


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="layout must be one of 'blocked', 'interleaved', got 'mixed'"):
        angle_features(0.0, 0.0, layout="mixed")
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        angle_features(0.0, 0.0, layout="blocked", dim=6)
