"""Dialogs and requests in generated worlds: in the formats of NDH and HANNA, and solvable."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit.prevalent import DataError, MiniWorld, load_hanna, load_ndh
from fq_toolkit.prevalent.miniworld.dialogs import dialog_items, dialog_records, write_dialogs
from fq_toolkit.prevalent.miniworld.landmarks import LANDMARKS
from fq_toolkit.prevalent.miniworld.requests import request_items, request_records, write_requests
from fq_toolkit.prevalent.tasks.hanna.help import Help, MiniHelper, RouteHelper
from fq_toolkit.prevalent.world.items import NavItem, check_items
from tests.prevalent.world.worlds import line_world

SEEDS = st.integers(0, 10**6)


@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_dialogs_lead_towards_what_is_looked_for(mini: MiniWorld, seed: int) -> None:
    records = dialog_records(mini, 12, seed=seed)
    assert records == dialog_records(mini, 12, seed=seed)
    assert [record["inst_idx"] for record in records] == list(range(12))
    for record in records:
        scan = mini.scan(record["scan"])
        goal = scan.locate(record["end_panos"][0])
        planned = [scan.locate(viewpoint) for viewpoint in record["planner_path"]]
        walked = [scan.locate(viewpoint) for viewpoint in record["player_path"]]
        assert mini.landmark(record["scan"], record["end_panos"][0]) == record["target"]
        assert record["start_pano"]["pano"] == record["planner_path"][0] == record["player_path"][0]
        assert 1 < len(planned) <= 4
        length = sum(scan.distances[a, b] for a, b in pairwise(planned))
        saved = scan.distances[planned[0], goal] - scan.distances[planned[-1], goal]
        assert saved == pytest.approx(length)
        assert all(scan.adjacent[a, b] for a, b in pairwise(walked))
        told = record["dialog_history"][-1]["message"].split()
        named = [word for word in told if word in LANDMARKS]
        assert named == [mini.landmark(record["scan"], viewpoint) for viewpoint in record["planner_path"][1:]]


def test_a_turn_remembers_the_turns_before_it(mini: MiniWorld) -> None:
    records = dialog_records(mini, 30, seed=1)
    later = [i for i in range(1, 30) if records[i]["game_idx"] == records[i - 1]["game_idx"]]
    assert later
    for i in later:
        before, now = records[i - 1], records[i]
        assert now["dialog_history"][:-2] == before["dialog_history"]
        assert now["start_pano"]["pano"] == before["player_path"][-1]


def test_dialogs_are_read_as_ndh(mini: MiniWorld, tmp_path: Path) -> None:
    path = write_dialogs(mini, tmp_path / "NDH_train.json", 15, seed=2)
    for target in ("planner", "player", "trusted"):
        items = load_ndh(path, target=target, world=mini)
        assert items == dialog_items(mini, 15, seed=2, target=target)
    assert items[0].instruction.startswith(f"<TAR> {dialog_records(mini, 15, seed=2)[0]['target']} <NAV> ")
    with pytest.raises(ValueError, match="mistakes"):
        dialog_records(mini, 1, mistakes=1.5)


@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_requests_name_what_stands_at_every_goal(mini: MiniWorld, seed: int) -> None:
    for item in request_items(mini, 10, seed=seed):
        scan = mini.scan(item.scan)
        word = item.instruction.split()[-1]
        standing = {v for v in scan.viewpoints if mini.landmark(item.scan, v) == word}
        assert set(item.goals) == standing
        nearest = min(scan.distances[scan.locate(item.start), scan.locate(goal)] for goal in item.goals)
        assert scan.distances[scan.locate(item.path[0]), scan.locate(item.path[-1])] == nearest
        assert 3 <= len(item.path) - 1 <= 8


def test_requests_are_read_as_hanna(mini: MiniWorld, tmp_path: Path) -> None:
    path = write_requests(mini, tmp_path / "hanna_train.json", 15, seed=2)
    assert load_hanna(path, world=mini) == request_items(mini, 15, seed=2)
    with pytest.raises(DataError, match="lower min_edges"):
        request_records(MiniWorld(0, num_scans=1, rooms=(1, 1)), 1)


@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_following_the_helper_leads_to_a_goal(mini: MiniWorld, seed: int) -> None:
    helper = MiniHelper(mini)
    for item in request_items(mini, 4, seed=seed):
        scan, place, asked = mini.scan(item.scan), item.start, 0
        while place not in item.goals:
            told = helper.help(item.scan, place, item.heading, item.goals)
            assert told == helper.help(item.scan, place, item.heading, item.goals)
            assert told is not None
            assert told.path[0] == place
            words = [word for word in told.text.split() if word in LANDMARKS]
            assert 1 <= len(words) <= 3
            for word in words:
                here = scan.locate(place)
                near = [scan.viewpoints[j] for j in scan.neighbors[here][scan.mask[here]]]
                (place,) = [name for name in near if mini.landmark(item.scan, name) == word]
            assert told.path[-1] == place, "what is said leads where the path leads"
            assert ("stop" in told.text or "wait" in told.text) == (place in item.goals)
            asked += 1
            assert asked <= 3


def test_routes_help_where_they_begin_and_lead_nearer() -> None:
    world = line_world(2.0, 2.0, 2.0, 2.0)

    def route(name: str, path: str) -> NavItem:
        return NavItem(name, "line", 0.0, tuple(path), (path[-1],), f"say {name}")

    helper = RouteHelper(world, [route("near", "abc"), route("far", "abcd"), route("away", "cba")])
    assert helper.help("line", "a", 0.0, ("e",)) == Help("say far", tuple("abcd"))
    assert helper.help("line", "a", 0.0, ("c",)) == Help("say near", tuple("abc"))
    assert helper.help("line", "b", 0.0, ("e",)) is None
    assert helper.help("line", "c", 0.0, ("e",)) is None
    assert helper.help("line", "a", 0.0, ()) is None


def test_generated_tasks_fit_their_world(mini: MiniWorld) -> None:
    check_items(dialog_items(mini, 20), mini)
    check_items(request_items(mini, 20), mini)
    with pytest.raises(DataError):
        check_items(request_items(mini, 2), MiniWorld(4))
    assert np.isfinite([mini.distance(i.scan, i.start, i.goals[0]) for i in request_items(mini, 20)]).all()
