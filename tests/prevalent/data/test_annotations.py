"""Loaders of R2R, NDH and HANNA, on small files."""

import json
from pathlib import Path
from typing import Any

import pytest

from fq_toolkit.prevalent import (
    DataError,
    MiniWorld,
    NavWorld,
    Scan,
    check_disjoint,
    load_hanna,
    load_ndh,
    load_r2r,
)
from fq_toolkit.prevalent.data.annotations import dialog_text
from tests.prevalent.world.worlds import line_world, write_json

R2R = {
    "path_id": 7,
    "scan": "line",
    "heading": 1,
    "path": ["a", "b", "c"],
    "distance": 2.0,
    "instructions": ["go", "go on"],
}
HANNA = {
    "path_id": "x_1",
    "scan": "line",
    "heading": 0.5,
    "paths": [["a", "b"], ["a", "b", "c"]],
    "instructions": ["find it"],
}
NDH = {
    "inst_idx": 5, "scan": "line", "target": "towel", "end_panos": ["c", "d"], "planner_path": ["a", "b"],
    "player_path": ["a", "b", "c"], "start_pano": {"pano": "a", "heading": 1.5, "elevation": 17.5},
    "dialog_history": [
        {"nav_idx": 0, "role": "navigator", "message": "Where to?"},
        {"nav_idx": 0, "role": "oracle", "message": "north"},
    ],
}  # fmt: skip
LOADERS = {"r2r": (load_r2r, R2R), "hanna": (load_hanna, HANNA), "ndh": (load_ndh, NDH)}
WORLD = line_world(1, 1, 1)


def changed(record: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**record, **changes}.items() if value is not ...}


def test_r2r(tmp_path: Path) -> None:
    items = load_r2r(write_json(tmp_path / "R2R.json", [R2R]), world=WORLD)
    assert [item.instr_id for item in items] == ["7_0", "7_1"]
    assert items[1][1:6] == ("line", 1.0, ("a", "b", "c"), ("c",), "go on")


def test_a_test_split_has_no_goals(tmp_path: Path) -> None:
    record = changed(R2R, path=["a"], distance=...)
    assert load_r2r(write_json(tmp_path / "R2R_test.json", [record]))[0].goals == ()


def test_hanna(tmp_path: Path) -> None:
    (item,) = load_hanna(write_json(tmp_path / "hanna.json", [HANNA]), world=WORLD)
    assert (item.instr_id, item.path, item.goals) == ("x_1_0", ("a", "b"), ("b", "c"))


@pytest.mark.parametrize(
    ("target", "path"), [("planner", ("a", "b")), ("player", ("a", "b", "c")), ("trusted", ("a", "b", "c"))]
)
def test_ndh(tmp_path: Path, target: Any, path: tuple[str, ...]) -> None:
    (item,) = load_ndh(write_json(tmp_path / "ndh.json", [NDH]), target=target, world=WORLD)
    assert (item.instr_id, item.path, item.goals, item.regions) == ("5", path, path[-1:], ("c", "d"))
    assert item.instruction == "<TAR> towel <NAV> Where to? <ORA> north"
    assert (item.heading, item.elevation) == (1.5, 0.0)


def test_the_trusted_path_is_the_planners_when_the_player_missed_its_goal(tmp_path: Path) -> None:
    for planner, player, expected in (
        (["a", "b"], ["a", "c"], ("a", "b")),
        (["a"], ["a", "b"], ("a",)),  # at the goal from the start: it does not count as coming past
        (["a"], ["a", "b", "a"], ("a", "b", "a")),
    ):
        record = changed(NDH, planner_path=planner, player_path=player)
        assert load_ndh(write_json(tmp_path / "ndh.json", [record]))[0].path == expected


def test_dialogs_are_cut_on_the_left(tmp_path: Path) -> None:
    path = write_json(tmp_path / "ndh.json", [NDH])
    assert load_ndh(path, max_words=3)[0].instruction == "to? <ORA> north"
    assert load_ndh(path, max_words=99)[0].instruction == load_ndh(path)[0].instruction
    with pytest.raises(ValueError, match="role 'pilot'"):
        dialog_text("x", [("pilot", "y")])


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version https://git-lfs.github.com/spec/v1\n", "is a git-LFS pointer"),
        ('[{"path_id": 3, "sc', "is not valid JSON.*truncated"),
        ('{"a": 1}', "holds dict; expected a JSON list"),
        ("[3]", "item 0 is int"),
        ("[{}]", "item 0 has no field"),
    ],
)
def test_a_file_of_something_else_is_named(tmp_path: Path, kind: str, text: str, message: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"file\.json.*{message}"):
        LOADERS[kind][0](path)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("r2r", {"path": []}, "path_id 7: path is no list of at least 1 strings"),
        ("r2r", {"path": [1]}, "path_id 7: path is no list of at least 1 strings"),
        ("r2r", {"heading": "north"}, "path_id 7: heading is str; expected int or float"),
        ("r2r", {"heading": True}, "path_id 7: heading is bool"),
        ("r2r", {"heading": float("nan")}, "path_id 7: heading is nan; expected radians"),
        ("r2r", {"instructions": ...}, "path_id 7 has no field 'instructions'"),
        ("r2r", {"scan": "lime"}, "item '7_0': the world has no scan 'lime'"),
        ("r2r", {"path": ["a", "z"]}, "item '7_0': scan 'line' has no viewpoint 'z'"),
        (
            "hanna",
            {"paths": [["a"], ["b"]]},
            "path_id x_1: paths must be a list of paths with one common start",
        ),
        ("hanna", {"paths": [["a"], []]}, "path_id x_1, path 1: paths is no list"),
        ("hanna", {"paths": []}, "path_id x_1: paths must be"),
        ("ndh", {"end_panos": []}, "inst_idx 5: end_panos is no list"),
        ("ndh", {"end_panos": ["q"]}, "item '5': scan 'line' has no viewpoint 'q'"),
        ("ndh", {"player_path": ...}, "inst_idx 5 has no field 'player_path'"),
        (
            "ndh",
            {"dialog_history": [{"role": "pilot", "message": ""}]},
            "inst_idx 5: a turn has the role 'pilot'",
        ),
    ],
)
def test_a_wrong_item_is_named(tmp_path: Path, kind: str, changes: dict[str, Any], message: str) -> None:
    load, record = LOADERS[kind]
    path = write_json(tmp_path / "file.json", [changed(record, **changes)])
    with pytest.raises(DataError, match=rf"file\.json: {message}"):
        load(path, world=WORLD)


def test_an_unreachable_goal_is_named(tmp_path: Path) -> None:
    line = WORLD.scan("line")
    adjacent = line.adjacent.copy()
    adjacent[1, 2] = adjacent[2, 1] = False
    world = NavWorld([Scan("line", line.viewpoints, line.positions, adjacent)])
    for kind in ("r2r", "ndh"):
        load, record = LOADERS[kind]
        with pytest.raises(DataError, match=r"file\.json: item .*: unreachable goal: .* from 'a' to 'c'"):
            load(write_json(tmp_path / "file.json", [record]), world=world)
    (item,) = load_hanna(write_json(tmp_path / "file.json", [HANNA]), world=world)
    assert item.goals == ("b", "c")  # one of its goals can be reached


@pytest.mark.parametrize("kind", LOADERS)
def test_an_id_that_occurs_twice_is_named(tmp_path: Path, kind: str) -> None:
    load, record = LOADERS[kind]
    with pytest.raises(DataError, match=r"file\.json: instruction '.*' occurs twice"):
        load(write_json(tmp_path / "file.json", [record, record]))


@pytest.mark.parametrize("kind", ["r2r", "hanna"])
def test_an_instruction_longer_than_the_limit_is_named(tmp_path: Path, kind: str) -> None:
    load, record = LOADERS[kind]
    path = write_json(tmp_path / "file.json", [changed(record, instructions=["a b c", "a b c d"])])
    assert len(load(path, max_tokens=4)) == 2
    with pytest.raises(
        DataError, match=r"file\.json: instruction '.*_1' has 4 tokens, more than the limit of 3"
    ):
        load(path, max_tokens=3)
    with pytest.raises(DataError, match=r"instruction '.*_0' has 5 tokens"):
        load(path, max_tokens=4, tokenize=list)


@pytest.mark.parametrize("kind", LOADERS)
def test_a_validation_path_in_a_training_set_is_named(tmp_path: Path, kind: str) -> None:
    load, record = LOADERS[kind]
    path = write_json(tmp_path / "train.json", [record])
    held_out = [load(path)[0]._replace(instr_id="val_3")]
    with pytest.raises(DataError, match=r"train\.json: item '.*' has the path of the held-out item 'val_3'"):
        load(path, held_out=held_out)
    assert load(path, held_out=[held_out[0]._replace(scan="other")])
    assert load(path, held_out=[held_out[0]._replace(path=("c", "b", "a"))])


def test_unseen_worlds_are_disjoint() -> None:
    check_disjoint(MiniWorld(0).items(20), MiniWorld(1).items(20))
    with pytest.raises(DataError, match="the training set: item '0_0'"):
        check_disjoint(MiniWorld(0).items(20), MiniWorld(0).items(20))


def test_an_unknown_target(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("[{}]")
    with pytest.raises(ValueError, match="target must be one of 'planner', 'player', 'trusted', got 'best'"):
        load_ndh(tmp_path / "x", target="best")


def test_json_of_the_generator_is_r2r(tmp_path: Path, mini: MiniWorld) -> None:
    path = mini.write(tmp_path, 4, instructions=2)
    assert load_r2r(path, world=NavWorld.from_connectivity(tmp_path)) == mini.items(4, instructions=2)
    record = json.loads(path.read_text())[0]
    assert set(record) == {"path_id", "scan", "heading", "path", "distance", "instructions"}
