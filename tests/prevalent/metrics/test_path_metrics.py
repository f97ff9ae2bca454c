"""Metrics: against plain programs, bounds, identities, and the cases where official programs disagree."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit.prevalent import DataError, MiniWorld, NavWorld, PathMetrics, Scan, measure_paths
from fq_toolkit.prevalent.world.paths import drop_repeats
from tests.prevalent.metrics.oracles import measure
from tests.prevalent.world.worlds import line_world, random_walk

WORLDS = {seed: MiniWorld(seed, rooms=(2, 3)) for seed in range(4)}
GRAPHS = {(seed, name): world.to_networkx(name) for seed, world in WORLDS.items() for name in world.names}
SEEDS = st.integers(0, 10**6)


class Episodes:
    """Random walks with random references and goals, some of them with repetitions."""

    def __init__(self, seed: int, count: int, *, max_goals: int = 3) -> None:
        generator = np.random.default_rng(seed)
        self.key = seed % len(WORLDS)
        self.world = WORLDS[self.key]
        self.scans, self.paths, self.references, self.goals = [], [], [], []
        for _ in range(count):
            name = str(generator.choice(self.world.names))
            scan = self.world.scan(name)
            start = int(generator.integers(len(scan)))
            walks = [
                random_walk(self.world, name, start, int(generator.integers(0, 9)), generator) for _ in "ab"
            ]
            repeats = generator.integers(1, 3, size=len(walks[0]))
            self.scans.append(name)
            self.paths.append([v for v, times in zip(walks[0], repeats, strict=True) for _ in range(times)])
            self.references.append(walks[1])
            picked = generator.integers(len(scan), size=generator.integers(1, max_goals + 1))
            self.goals.append([scan.viewpoints[i] for i in picked])

    def measure(self, **options: object) -> PathMetrics:
        return measure_paths(self.world, self.scans, self.paths, self.references, self.goals, **options)


def one(
    world: NavWorld, path: str, reference: str, goals: str = "", radius: float = 3.0, inclusive: bool = False
) -> dict[str, float]:
    """Measure one path on a world of one scan whose viewpoints are letters."""
    found = measure_paths(
        world, ["line"], [list(path)], [list(reference)], [list(goals or reference[-1])],
        success_radius=radius, inclusive=inclusive,
    )  # fmt: skip
    return {name: float(values[0]) for name, values in found._asdict().items()}


@given(seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_all_at_once_equals_one_by_one_from_the_formulas(seed: int) -> None:
    episodes = Episodes(seed, 7)
    found = episodes.measure()
    for row, (scan, path, reference, goals) in enumerate(
        zip(episodes.scans, episodes.paths, episodes.references, episodes.goals, strict=True)
    ):
        exact = measure(GRAPHS[episodes.key, scan], drop_repeats(path), reference, goals)
        for name, value in exact._asdict().items():
            assert getattr(found, name)[row] == pytest.approx(value, rel=1e-9, abs=1e-9), name


@given(seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_bounds(seed: int) -> None:
    found = Episodes(seed, 10).measure()
    assert all(values.dtype == np.float64 for values in found)
    for name in ("SR", "OSR", "SPL", "CLS", "nDTW", "SDTW"):
        values = getattr(found, name)
        assert ((values >= 0) & (values <= 1)).all(), name
    assert (found.OE <= found.NE + 1e-12).all()
    assert (found.SR <= found.OSR).all()
    assert (found.SPL <= found.SR).all()
    assert (found.SDTW <= found.nDTW).all()
    assert (found.TL >= 0).all()


@given(seed=SEEDS, cut=st.integers(0, 10))
@settings(max_examples=25, deadline=None)
def test_items_do_not_touch_each_other(seed: int, cut: int) -> None:
    episodes = Episodes(seed, 10)
    whole = episodes.measure()
    order = np.random.default_rng(seed).permutation(10)[:cut]
    for field in ("scans", "paths", "references", "goals"):
        setattr(episodes, field, [getattr(episodes, field)[i] for i in order])
    for part, values in zip(episodes.measure(), whole, strict=True):
        np.testing.assert_array_equal(part, values[order])


@given(seed=SEEDS)
@settings(max_examples=25, deadline=None)
def test_walking_the_annotated_path_is_perfect(seed: int) -> None:
    episodes = Episodes(seed, 6)
    episodes.paths = episodes.references
    episodes.goals = [path[-1:] for path in episodes.references]
    found = episodes.measure()
    for name, value in {"NE": 0, "OE": 0, "SR": 1, "OSR": 1, "CLS": 1, "nDTW": 1, "SDTW": 1}.items():
        np.testing.assert_allclose(getattr(found, name), value, err_msg=name)


@given(seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_turning_on_the_spot_changes_nothing(seed: int) -> None:
    episodes = Episodes(seed, 6)
    found = episodes.measure()
    episodes.paths = [drop_repeats(path) for path in episodes.paths]
    for with_turns, without in zip(found, episodes.measure(), strict=True):
        np.testing.assert_array_equal(with_turns, without)


def test_by_hand() -> None:
    world = line_world(2.0, 2.0, 2.0)
    found = one(world, "abcb", "abcd", "d")
    assert found["TL"] == 6
    assert (found["NE"], found["OE"], found["SR"], found["OSR"], found["SPL"]) == (4, 2, 0, 1, 0)
    # d(r, P) is 0, 0, 0, 2: coverage c, expected length 6 c, walked 6.
    c = (3 + np.exp(-2 / 3)) / 4
    assert found["CLS"] == pytest.approx(c * 6 * c / (6 * c + (6 - 6 * c)))
    assert found["nDTW"] == pytest.approx(np.exp(-4 / (4 * 3)))
    found = one(world, "abc", "abcd", "d")
    assert (found["SR"], found["SPL"]) == (1, 1)
    assert found["SDTW"] == found["nDTW"]
    assert one(world, "abcdc", "abcd", "d")["SPL"] == pytest.approx(6 / 8)


def test_success_at_exactly_the_radius() -> None:
    world = line_world(3.0)
    for name in ("SR", "OSR", "SPL", "SDTW"):
        assert one(world, "a", "ab")[name] == 0
    found = one(world, "a", "ab", inclusive=True)
    assert found["SR"] == found["OSR"] == 1
    assert found["SDTW"] == found["nDTW"]
    assert one(line_world(2.0), "a", "ab", radius=2.0)["SR"] == 0
    assert one(line_world(2.0), "a", "ab", radius=2.0, inclusive=True)["SR"] == 1


def test_when_the_start_is_the_goal() -> None:
    world = line_world(1.0)
    assert one(world, "a", "a")["SPL"] == 1
    assert one(world, "aa", "a")["SPL"] == 1
    assert one(world, "aba", "a")["SPL"] == 0
    assert one(world, "ab", "a")["SPL"] == 0
    assert one(world, "a", "a")["CLS"] == 1
    assert one(world, "aba", "a")["CLS"] == 0


def test_the_nearest_of_several_goals_counts() -> None:
    world = line_world(4.0, 4.0, 4.0)
    assert one(world, "ab", "abcd", "bd")["SPL"] == 1
    found = one(world, "abcdc", "abcd", "ad")
    assert (found["NE"], found["OE"]) == (4, 0)


def test_nothing_to_measure() -> None:
    assert all(values.shape == (0,) for values in measure_paths(line_world(1.0), [], [], [], []))


def test_mistakes_are_named() -> None:
    world = line_world(1.0, 1.0)
    with pytest.raises(
        DataError, match="item 0: step 1 goes from 'a' to 'c', and scan 'line' has no such edge"
    ):
        one(world, "ac", "abc")
    with pytest.raises(DataError, match=r"item 0: path starts at 'b'; expected the start of .* 'a'"):
        one(world, "bc", "abc")
    with pytest.raises(DataError, match="item 0: scan 'line' has no viewpoint 'z'"):
        one(world, "az", "abc")
    with pytest.raises(DataError, match="item 0: path is empty"):
        one(world, "", "abc")
    with pytest.raises(DataError, match="x: goals is empty"):
        measure_paths(world, ["line"], ["a"], ["a"], [""], names=["x"])
    with pytest.raises(DataError, match="x: the world has no scan 'lane'"):
        measure_paths(world, ["lane"], ["a"], ["a"], ["a"], names=["x"])
    with pytest.raises(ValueError, match="1 scans, 2 paths"):
        measure_paths(world, ["line"], ["a", "b"], ["a"], ["a"])
    apart = Scan("line", ["a", "b"], np.array([[0, 0, 0], [0, 1.0, 0]]), np.zeros((2, 2), dtype=bool))
    with pytest.raises(DataError, match="item 0: unreachable goal in scan 'line'"):
        one(NavWorld([apart]), "a", "a", "b")
