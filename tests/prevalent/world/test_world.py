"""Graphs: reading, writing, shortest paths, the law of rotation, and what is wrong with a file."""

import json
import math
from itertools import pairwise
from pathlib import Path

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit.prevalent import DataError, MiniWorld, NavWorld, Scan
from fq_toolkit.prevalent.world.angles import wrap
from tests.prevalent.world.worlds import connectivity_record, line_world, write_json

POINTS = st.lists(
    st.tuples(*[st.integers(-400, 400).map(lambda i: i / 100)] * 3), min_size=2, max_size=9, unique=True
)


@st.composite
def scans(draw: st.DrawFn) -> Scan:
    points = np.array(draw(POINTS))
    count = len(points)
    edges = draw(st.sets(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)), max_size=3 * count))
    adjacent = np.zeros((count, count), dtype=bool)
    for i, j in edges:
        adjacent[i, j] = adjacent[j, i] = i != j
    return Scan("s", [f"v{i}" for i in range(count)], points, adjacent)


@given(scan=scans())
@settings(max_examples=60, deadline=None)
def test_slots_hold_every_edge_once(scan: Scan) -> None:
    found = [(i, int(j)) for i in range(len(scan)) for j in scan.neighbors[i][scan.mask[i]]]
    assert found == [tuple(edge) for edge in np.argwhere(scan.adjacent).tolist()]
    for i, slot in np.argwhere(scan.mask):
        east, north, up = scan.positions[scan.neighbors[i, slot]] - scan.positions[i]
        flat = math.hypot(east, north)
        assert scan.lengths[i, slot] == pytest.approx(math.hypot(flat, up))
        if flat > 1e-6:
            way = (math.sin(scan.headings[i, slot]), math.cos(scan.headings[i, slot]))
            assert way == pytest.approx((east / flat, north / flat), abs=1e-4)
        assert scan.elevations[i, slot] == pytest.approx(math.atan2(up, flat), abs=1e-4)


@given(scan=scans())
@settings(max_examples=40, deadline=None)
def test_distances_are_networkx_distances_and_a_metric(scan: Scan) -> None:
    world = NavWorld([scan])
    exact = dict(networkx.all_pairs_dijkstra_path_length(world.to_networkx("s")))
    for i, a in enumerate(scan.viewpoints):
        for j, b in enumerate(scan.viewpoints):
            assert scan.distances[i, j] == pytest.approx(exact[a].get(b, math.inf), rel=1e-12)
    np.testing.assert_allclose(scan.distances, scan.distances.T)
    direct = np.linalg.norm(scan.positions[:, None] - scan.positions[None], axis=-1)
    assert (scan.distances >= direct - 1e-9).all()


@given(scan=scans())
@settings(max_examples=40, deadline=None)
def test_shortest_paths_follow_edges_and_have_the_shortest_length(scan: Scan) -> None:
    for start, goal in np.ndindex(len(scan), len(scan)):
        if np.isinf(scan.distances[start, goal]):
            with pytest.raises(DataError, match="cannot be reached"):
                scan.shortest_path(start, goal)
            continue
        path = scan.shortest_path(start, goal)
        assert (path[0], path[-1]) == (start, goal)
        assert all(scan.adjacent[a, b] for a, b in pairwise(path))
        assert sum(scan.distances[a, b] for a, b in pairwise(path)) == pytest.approx(
            scan.distances[start, goal]
        )


@given(seed=st.integers(0, 1000), turns=st.integers(0, 11))
@settings(max_examples=30, deadline=None)
def test_a_turned_world_has_turned_headings_and_views_and_the_rest_as_before(seed: int, turns: int) -> None:
    scan = MiniWorld(seed, num_scans=1, rooms=(2, 3)).scan(f"mini{seed}x0")
    angle = turns * math.pi / 6
    cos, sin = math.cos(angle), math.sin(angle)  # clockwise, as headings
    x, y, z = scan.positions.T
    turned = Scan("t", scan.viewpoints, np.stack([x * cos + y * sin, y * cos - x * sin, z], 1), scan.adjacent)
    gap = wrap(turned.headings - scan.headings - angle)[scan.mask]
    np.testing.assert_allclose(gap, 0, atol=1e-5)
    np.testing.assert_allclose(turned.elevations, scan.elevations, atol=1e-5)
    np.testing.assert_allclose(turned.distances, scan.distances, rtol=1e-12)
    edge = np.abs(
        np.abs(wrap(scan.headings - np.round(scan.headings / (math.pi / 6)) * math.pi / 6)) - math.pi / 12
    )
    clear = scan.mask & (edge > 1e-4)
    expected = (scan.views + turns) % 12 + scan.views // 12 * 12
    np.testing.assert_array_equal(turned.views[clear], expected[clear])


def test_written_worlds_come_back(tmp_path: Path, mini: MiniWorld) -> None:
    mini.to_connectivity_json(tmp_path)
    again = NavWorld.from_connectivity(tmp_path)
    assert again.names == mini.names
    for name in mini.names:
        ours, theirs = mini.scan(name), again.scan(name)
        assert theirs.viewpoints == ours.viewpoints
        np.testing.assert_array_equal(theirs.positions, ours.positions)
        np.testing.assert_array_equal(theirs.adjacent, ours.adjacent)
        np.testing.assert_array_equal(theirs.views, ours.views)
    record = json.loads((tmp_path / f"{mini.names[0]}_connectivity.json").read_text())[0]
    assert set(record) == {"image_id", "pose", "included", "visible", "unobstructed", "height"}


def test_networkx_there_and_back(mini: MiniWorld) -> None:
    name = mini.names[0]
    graph = mini.to_networkx(name)
    for source in (graph, graph.to_directed()):
        again = NavWorld.from_networkx({name: source}).scan(name)
        np.testing.assert_array_equal(again.adjacent, mini.scan(name).adjacent)
        np.testing.assert_array_equal(again.positions, mini.scan(name).positions)


def test_scans_are_read_when_needed(tmp_path: Path, mini: MiniWorld) -> None:
    mini.to_connectivity_json(tmp_path)
    first, second = mini.names
    (tmp_path / f"{second}_connectivity.json").write_text("[")
    world = NavWorld.from_connectivity(tmp_path)
    assert len(world.scan(first)) == len(mini.scan(first))
    with pytest.raises(DataError, match=rf"{second}_connectivity.json is not valid JSON .*truncated"):
        world.scan(second)


def test_excluded_viewpoints_are_no_part_of_the_graph(tmp_path: Path) -> None:
    rows = [[False, True, True], [True, False, True], [True, True, False]]
    records = [
        connectivity_record(name, (0, i, 0), rows[i], included=name != "b") for i, name in enumerate("abc")
    ]
    write_json(tmp_path / "s_connectivity.json", records)
    world = NavWorld.from_connectivity(tmp_path)
    assert world.scan("s").viewpoints == ("a", "c")
    assert world.distance("s", "a", "c") == 2.0
    with pytest.raises(DataError, match="viewpoint 'b' of scan 's' is excluded"):
        world.distance("s", "a", "b")


def test_headings_by_name() -> None:
    world = line_world(1.0, 2.0)
    assert world.heading("line", "a", "b") == 0.0
    assert world.heading("line", "b", "a") == pytest.approx(math.pi)
    assert world.shortest_path("line", "c", "a") == ["c", "b", "a"]
    with pytest.raises(DataError, match="no edge from 'a' to 'c'"):
        world.heading("line", "a", "c")
    with pytest.raises(DataError, match="no viewpoint 'z'; it has 3"):
        world.distance("line", "a", "z")
    with pytest.raises(DataError, match="no scan 'lime'; did you mean 'line'"):
        world.scan("lime")


BROKEN = {
    "a git-LFS pointer": (
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
        "git lfs pull",
    ),
    "truncated": ('[{"image_id": "a", "po', "not valid JSON .*truncated or damaged"),
    "empty": ("", "is empty"),
    "an object": ("{}", "holds dict; expected a JSON list"),
    "numbers": ("[1]", "item 0 is int; expected a JSON object"),
    "no name": ("[{}]", "viewpoint 0 has no field 'image_id'"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_named(tmp_path: Path, kind: str) -> None:
    text, message = BROKEN[kind]
    (tmp_path / "s_connectivity.json").write_text(text)
    with pytest.raises(DataError, match=rf"s_connectivity\.json.*{message}"):
        NavWorld.from_connectivity(tmp_path, ["s"]).scan("s")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pose": [0] * 15}, r"viewpoint 0 \('a'\): pose has 15 numbers"),
        ({"unobstructed": [True]}, r"viewpoint 0 \('a'\): unobstructed has 1 entries; expected 2"),
        ({"unobstructed": [False, False]}, "asymmetric edge: 'b' leads to 'a'"),
        ({"included": 1}, r"viewpoint 0 \('a'\): included is int; expected bool"),
        ({"image_id": "b"}, "viewpoint 'b' occurs twice"),
        ({"pose": [1, 0, 0, float("nan"), *[0] * 12]}, "position of viewpoint 'a' is not finite"),
        ({"pose": [1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1]}, "'a' and 'b' have the same position"),
        ({"pose": [[]] * 16}, "holds something else"),
    ],
)
def test_a_broken_viewpoint_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    records = [
        connectivity_record("a", (0, 0, 0), [False, True]),
        connectivity_record("b", (0, 1, 0), [True, False]),
    ]
    records[0] |= change
    write_json(tmp_path / "s_connectivity.json", records)
    with pytest.raises(DataError, match=rf"s_connectivity\.json.*{message}"):
        NavWorld.from_connectivity(tmp_path, ["s"]).scan("s")


def test_missing_scans_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"scan 'x' is missing: .*x_connectivity\.json"):
        NavWorld.from_connectivity(tmp_path, ["x"])
    with pytest.raises(DataError, match="is not a folder"):
        NavWorld.from_connectivity(tmp_path / "absent")
    with pytest.raises(DataError, match="names no scans"):
        NavWorld.from_connectivity(tmp_path)
    with pytest.raises(TypeError, match=r"write \['x'\]"):
        NavWorld.from_connectivity(tmp_path, "x")


def test_graphs_are_checked() -> None:
    graph = networkx.DiGraph([("a", "b")])
    with pytest.raises(DataError, match="node 'a' must be a string with a position"):
        NavWorld.from_networkx({"g": graph})
    networkx.set_node_attributes(graph, {"a": (0, 0, 0), "b": (0, 1, 0)}, "position")
    with pytest.raises(DataError, match="asymmetric edge: 'a' leads to 'b'"):
        NavWorld.from_networkx({"g": graph})
    scan = line_world(1.0).scan("line")
    with pytest.raises(DataError, match="'line' is given twice"):
        NavWorld([scan, scan])
