"""The camera: what it sees and how it moves."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit.prevalent import MiniWorld, NavWorld, Scan, move_camera, place_camera, visible_viewpoints
from fq_toolkit.prevalent.world.angles import STEP, snap, wrap
from tests.prevalent.world.worlds import line_world, view_state

WORLD = MiniWorld(5, num_scans=1)
NAME = WORLD.names[0]
SCAN = WORLD.scan(NAME)
VIEWPOINTS = st.integers(0, len(SCAN) - 1)
VIEWS = st.integers(0, 35)


@given(viewpoint=VIEWPOINTS, view=VIEWS)
@settings(deadline=None)
def test_sees_itself_then_what_stands_within_forty_degrees_nearest_first(viewpoint: int, view: int) -> None:
    state = view_state(NAME, SCAN.viewpoints[viewpoint], view)
    seen = visible_viewpoints(WORLD, state)
    assert seen[0] == (state.viewpoint, 0.0, 0.0, 0.0)
    gaps = [math.hypot(other.rel_heading, other.rel_elevation) for other in seen[1:]]
    assert gaps == sorted(gaps)
    expected = set()
    for slot in np.nonzero(SCAN.mask[viewpoint])[0]:
        name = SCAN.viewpoints[SCAN.neighbors[viewpoint, slot]]
        turn = float(wrap(SCAN.headings[viewpoint, slot] - state.heading))
        if abs(abs(turn) - math.radians(40)) < 1e-5:
            return  # on the border rounding decides
        if abs(turn) < math.radians(40):
            expected.add(name)
            (found,) = [other for other in seen if other.viewpoint == name]
            assert found.rel_heading == pytest.approx(turn, abs=1e-6)
            rise = SCAN.elevations[viewpoint, slot] - state.elevation
            assert found.rel_elevation == pytest.approx(rise, abs=1e-6)
            assert found.distance == pytest.approx(SCAN.lengths[viewpoint, slot], abs=1e-5)
    assert {other.viewpoint for other in seen[1:]} == expected


@given(viewpoint=VIEWPOINTS)
@settings(deadline=None, max_examples=20)
def test_a_candidate_is_in_the_view_that_sees_it_nearest_to_the_middle(viewpoint: int) -> None:
    best: dict[str, tuple[float, int]] = {}
    for view in range(36):
        for other in visible_viewpoints(WORLD, view_state(NAME, SCAN.viewpoints[viewpoint], view))[1:]:
            gap = math.hypot(other.rel_heading, other.rel_elevation)
            if gap < best.get(other.viewpoint, (math.inf, 0))[0]:
                best[other.viewpoint] = (gap, view)
    slots = np.nonzero(SCAN.mask[viewpoint])[0]
    assert len(best) == len(slots)
    for slot in slots:
        assert best[SCAN.viewpoints[SCAN.neighbors[viewpoint, slot]]][1] == SCAN.views[viewpoint, slot]


@given(
    start=VIEWPOINTS,
    view=VIEWS,
    moves=st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from([-2.0, 0, 0.1]), st.sampled_from([-1, 0, 9]))
    ),
)
@settings(deadline=None, max_examples=40)
def test_moving_keeps_the_heading_then_turns_by_one_view(start: int, view: int, moves: list) -> None:
    state = view_state(NAME, SCAN.viewpoints[start], view)
    for index, turn, tilt in moves:
        seen = visible_viewpoints(WORLD, state)
        index %= len(seen)
        after = move_camera(WORLD, state, index, turn, tilt)
        assert after.viewpoint == seen[index].viewpoint
        row, column = divmod(state.view, 12)
        row = min(2, max(0, row + (tilt > 0) - (tilt < 0)))
        assert after.view == row * 12 + (column + (turn > 0) - (turn < 0)) % 12
        assert after[2:] == snap(after.heading, after.elevation)
        state = after


def test_placing_snaps_and_checks() -> None:
    state = place_camera(WORLD, NAME, SCAN.viewpoints[0], 6.2, 0.3)
    assert state.view == 24
    assert (state.heading, state.elevation) == (0.0, STEP)
    with pytest.raises(ValueError, match="no viewpoint 'x'"):
        place_camera(WORLD, NAME, "x")


def test_an_index_that_is_not_visible() -> None:
    state = place_camera(line_world(1.0), "line", "a")
    with pytest.raises(
        ValueError, match="index 2 of a move from 'a' in scan 'line': 2 viewpoints are visible"
    ):
        move_camera(line_world(1.0), state, 2)


def test_a_viewpoint_straight_above_is_never_seen() -> None:
    above = Scan("s", ["a", "b"], np.array([[0, 0, 0], [0, 0, 2.0]]), ~np.eye(2, dtype=bool))
    for view in range(36):
        assert len(visible_viewpoints(NavWorld([above]), view_state("s", "a", view))) == 1


def test_elevation_counts_in_the_order() -> None:
    steep, level = (math.sin(0.1), math.cos(0.1), 2.0), (math.sin(0.4), math.cos(0.4), 0.0)
    adjacent = np.zeros((3, 3), dtype=bool)
    adjacent[0, 1:] = adjacent[1:, 0] = True
    positions = np.array([(0, 0, 0), steep, level])
    world = NavWorld([Scan("s", ["here", "steep", "level"], positions, adjacent)])

    def order(view: int) -> list[str]:
        return [other.viewpoint for other in visible_viewpoints(world, view_state("s", "here", view))]

    assert order(12) == ["here", "level", "steep"]
    assert order(24) == ["here", "steep", "level"]  # looking up
