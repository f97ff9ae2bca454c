"""Generated worlds: the same each time, connected, and such that words have a meaning that can be seen."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit.prevalent import FeatureStore, MiniWorld, NavWorld
from fq_toolkit.prevalent.miniworld.landmarks import LANDMARKS, landmark_vectors, place_landmarks, turn_words

SEEDS = st.integers(0, 10**6)


@given(seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_worlds_repeat_and_differ(seed: int) -> None:
    first, again, other = MiniWorld(seed), MiniWorld(seed), MiniWorld(seed + 1)
    assert first.items(3) == again.items(3)
    for name in first.names:
        np.testing.assert_array_equal(first.scan(name).positions, again.scan(name).positions)
    rows = np.arange(len(first.features()))
    np.testing.assert_array_equal(first.features().panorama(rows), again.features().panorama(rows))
    assert not set(first.names) & set(other.names)
    assert len(first.scan(first.names[0])) != len(other.scan(other.names[0])) or not np.array_equal(
        first.scan(first.names[0]).positions, other.scan(other.names[0]).positions
    )


@given(seed=SEEDS)
@settings(max_examples=25, deadline=None)
def test_buildings_are_connected_and_have_levels(seed: int) -> None:
    world = MiniWorld(seed)
    for name in world.names:
        scan = world.scan(name)
        assert np.isfinite(scan.distances).all()
        assert np.ptp(scan.positions[:, 2]) > 0.5
        assert scan.mask.sum(axis=1).max() <= 13


@given(seed=SEEDS)
@settings(max_examples=25, deadline=None)
def test_neighbours_can_be_told_apart_by_their_landmarks(seed: int) -> None:
    world = MiniWorld(seed)
    for name in world.names:
        scan = world.scan(name)
        for here in range(len(scan)):
            words = [LANDMARKS[world.landmarks[name][j]] for j in scan.neighbors[here][scan.mask[here]]]
            assert len(set(words)) == len(words)


@given(seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_instructions_name_what_the_view_of_each_step_shows(seed: int) -> None:
    world = MiniWorld(seed, feature_dim=256)
    store, vectors = world.features(), landmark_vectors(256)
    for item in world.items(4, seed=seed):
        scan = world.scan(item.scan)
        words = [word for word in item.instruction.split() if word in LANDMARKS]
        assert words == [world.landmark(item.scan, viewpoint) for viewpoint in item.path[1:]]
        for here, there, word in zip(item.path, item.path[1:], words, strict=False):
            i = scan.locate(here)
            slot = int(np.nonzero(scan.neighbors[i] == scan.locate(there))[0][0])
            shown = store.panorama(store.rows([(item.scan, here)]))[0, scan.views[i, slot]]
            others = [LANDMARKS[world.landmarks[item.scan][j]] for j in scan.neighbors[i][scan.mask[i]]]
            # How clearly each is seen: products alone would mix them, as random vectors are not orthogonal.
            likeness = dict(zip(LANDMARKS, np.linalg.lstsq(vectors.T, shown)[0], strict=True))
            assert likeness[word] > 0.4
            same_view = scan.views[i][scan.mask[i]] == scan.views[i, slot]
            away = [likeness[other] for other, seen in zip(others, same_view, strict=True) if not seen]
            assert likeness[word] > max(away, default=-1)


def test_a_landmark_looks_the_same_in_every_world() -> None:
    np.testing.assert_array_equal(landmark_vectors(16), landmark_vectors(16))
    assert len(set(LANDMARKS)) == len(LANDMARKS) == len(landmark_vectors(4))


def test_a_written_world_is_the_world(tmp_path: Path, mini: MiniWorld) -> None:
    mini.write(tmp_path, 3)
    world, store = NavWorld.from_connectivity(tmp_path), FeatureStore.from_npz(tmp_path / "features.npz")
    rows = np.arange(len(store))
    assert store.keys == mini.features().keys
    np.testing.assert_allclose(store.panorama(rows), mini.features().panorama(rows), atol=4e-3)  # float16
    assert world.names == mini.names


@pytest.mark.parametrize(
    ("turn", "rise", "words"),
    [(0, 0, "go straight"), (0, 0.3, "go up"), (1.5, -0.3, "turn right and go down"), (-1.5, 0, "turn left"),
     (3.1, 0, "turn around"), (6.2, 0, "go straight")],
)  # fmt: skip
def test_words_for_turns(turn: float, rise: float, words: str) -> None:
    assert turn_words(turn, rise) == words


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        MiniWorld(0, num_scans=0)
    with pytest.raises(ValueError, match="noise at least 0"):
        MiniWorld(0, noise=-1)
    crowd = NavWorld.from_networkx({"star": __star()}).scan("star")
    with pytest.raises(ValueError, match="needs more than 24 landmarks"):
        place_landmarks(crowd, np.random.default_rng(0))


def __star():
    networkx = pytest.importorskip("networkx", reason="networkx is not installed")
    graph = networkx.star_graph(45)
    graph = networkx.relabel_nodes(graph, str)
    angles = np.linspace(0, 6, 46)
    places = {str(i): (np.sin(a), np.cos(a), 0.1 * i) for i, a in enumerate(angles)}
    networkx.set_node_attributes(graph, places, "position")
    return graph
