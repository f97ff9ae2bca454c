"""Sampled paths: shortest ones within bounds, and all of them once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit.prevalent import DataError, MiniWorld, sample_paths
from fq_toolkit.prevalent.world.paths import distinct_paths
from tests.prevalent.world.worlds import line_world


@given(seed=st.integers(0, 10**6), count=st.integers(1, 10))
@settings(max_examples=20, deadline=None)
def test_sampled_paths_are_shortest_and_neither_short_nor_long(seed: int, count: int) -> None:
    world = MiniWorld(seed % 20)
    paths = sample_paths(world, count, seed=seed)
    assert len(paths) == count
    for scan, path in paths:
        assert 4 <= len(path) - 1 <= 6
        assert world.distance(scan, path[0], path[-1]) >= 5
        assert world.shortest_path(scan, path[0], path[-1]) == path


def test_distinct_paths_are_all_of_them_once() -> None:
    world = MiniWorld(5, num_scans=2)
    everything = {(scan, *path) for scan, path in distinct_paths(world, None)}
    drawn = {(scan, *path) for scan, path in sample_paths(world, 4000, seed=1)}
    assert drawn <= everything
    assert len(drawn) > 0.95 * len(everything)
    for scan, *path in everything:
        assert path == world.shortest_path(scan, path[0], path[-1])
        assert 5 <= len(path) <= 7
        assert world.distance(scan, path[0], path[-1]) >= 5
    few = distinct_paths(world, 40, seed=3)
    assert few == distinct_paths(world, 40, seed=3) != distinct_paths(world, 40, seed=4)
    assert len({(scan, *path) for scan, path in few}) == 40
    assert len(distinct_paths(world, 10**6)) == len(everything)


def test_bounds_that_nothing_satisfies_are_refused() -> None:
    with pytest.raises(DataError, match="the scans are too small"):
        sample_paths(line_world(1.0), 1)
    with pytest.raises(ValueError, match="min_edges"):
        sample_paths(line_world(1.0), 1, min_edges=3, max_edges=2)
