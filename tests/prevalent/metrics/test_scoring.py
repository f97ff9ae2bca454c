"""Scores of prediction files, and the command."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fq_toolkit import cli
from fq_toolkit.prevalent import (
    BatchedNavEnv,
    DataError,
    MiniWorld,
    NavWorld,
    Scan,
    load_predictions,
    load_r2r,
    measure_paths,
    save_predictions,
    score_hanna,
    score_ndh,
    score_r2r,
)
from tests.prevalent.world.worlds import line_world, write_json

LINE = line_world(1, 1, 1, 1)


def trajectory(path: str) -> list[list[Any]]:
    return [[viewpoint, 0.0, 0.0] for viewpoint in path]


def ndh_record(number: int, planner: str, player: str, ends: str) -> dict[str, Any]:
    return {
        "inst_idx": number, "scan": "line", "target": "x", "end_panos": list(ends),
        "planner_path": list(planner), "player_path": list(player), "dialog_history": [],
        "start_pano": {"pano": planner[0], "heading": 0.0, "elevation": 0.0},
    }  # fmt: skip


@pytest.fixture
def rolled(tmp_path: Path, mini: MiniWorld) -> tuple[Path, Path]:
    """Return predictions of random agents and the annotations."""
    annotations = mini.write(tmp_path, 12, instructions=2)
    items = load_r2r(annotations)
    generator = np.random.default_rng(0)
    env = BatchedNavEnv(mini)
    obs = env.reset(items)
    for _ in range(6):
        obs, _, _ = env.step([generator.choice(np.nonzero(row)[0]) for row in obs.action_mask])
    return save_predictions(tmp_path / "predictions.json", env.trajectories()), annotations


def test_scores_are_the_means_of_the_metrics(rolled: tuple[Path, Path], mini: MiniWorld) -> None:
    predictions, annotations = rolled
    items = load_r2r(annotations)
    records = load_predictions(predictions, items)
    found = measure_paths(
        mini,
        [i.scan for i in items],
        [r["path"] for r in records],
        [i.path for i in items],
        [i.goals for i in items],
    )
    scores = score_r2r(predictions, annotations, mini)
    assert scores._fields == ("TL", "NE", "OE", "SR", "OSR", "SPL", "CLS", "nDTW", "SDTW")
    for name, value in scores._asdict().items():
        assert value == pytest.approx(getattr(found, name).mean()), name


def test_the_order_of_the_file_does_not_matter(rolled: tuple[Path, Path], mini: MiniWorld) -> None:
    predictions, annotations = rolled
    before = score_r2r(predictions, annotations, mini)
    write_json(predictions, json.loads(predictions.read_text())[::-1])
    assert score_r2r(predictions, annotations, mini) == before


def test_the_submission_format(rolled: tuple[Path, Path], tmp_path: Path) -> None:
    record = json.loads(rolled[0].read_text())[3]
    assert set(record) == {"instr_id", "trajectory"}
    assert record["instr_id"] == "1_1"
    viewpoint, heading, elevation = record["trajectory"][0]
    assert isinstance(viewpoint, str)
    assert 0 <= heading < 2 * math.pi
    assert elevation in (-math.pi / 6, 0.0, math.pi / 6)
    path = save_predictions(
        tmp_path / "ndh.json", [{"instr_id": "5", "trajectory": trajectory("a")}], id_field="inst_idx"
    )
    assert json.loads(path.read_text()) == [{"inst_idx": 5, "trajectory": [["a", 0.0, 0.0]]}]
    with pytest.raises(ValueError, match="'5' occurs twice"):
        save_predictions(path, [{"instr_id": "5", "trajectory": []}] * 2)
    with pytest.raises(ValueError, match="id_field must be"):
        save_predictions(path, [], id_field="id")


def edit(kind: str, records: list[dict[str, Any]]) -> Any:
    if kind == "missing":
        return records[2:]
    if kind == "duplicate":
        return [*records, records[4]]
    if kind == "unknown":
        return [*records, {**records[0], "instr_id": "99_0"}]
    if kind == "empty":
        return [{**records[0], "trajectory": []}, *records[1:]]
    if kind == "poses":
        return [{**records[0], "trajectory": ["a"]}, *records[1:]]
    if kind == "no id":
        return [{"trajectory": []}]
    if kind == "start":
        own = records[0]["trajectory"][0][0]
        other = next(r["trajectory"] for r in records if r["trajectory"][0][0] != own)
        return [{**records[0], "trajectory": other}, *records[1:]]
    first, last = records[0]["trajectory"][0], records[0]["trajectory"][-1]
    return [{**records[0], "trajectory": [first, last, first]}, *records[1:]]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "2 missing ids of 24 expected: '0_0', '0_1'"),
        ("duplicate", "instr_id '2_0' is a duplicate"),
        ("unknown", "1 unknown ids of 24 expected: '99_0'"),
        ("empty", "instr_id '0_0': the trajectory is empty"),
        ("poses", "instr_id '0_0': step 0 is a; expected"),
        ("no id", "item 0 has no field 'instr_id'"),
        ("start", "'0_0': .*path starts at|'0_0': scan .* has no viewpoint"),
        ("jump", "'0_0': step 1 goes from .* has no such edge"),
    ],
)
def test_a_wrong_prediction_file_is_named(
    rolled: tuple[Path, Path], mini: MiniWorld, kind: str, message: str
) -> None:
    predictions, annotations = rolled
    records = json.loads(predictions.read_text())
    if kind == "jump":  # the ends of an annotated path are no neighbours
        item = load_r2r(annotations)[0]
        records[0]["trajectory"] = trajectory([item.path[0], item.path[-1]])  # type: ignore[arg-type]
    write_json(predictions, edit(kind, records))
    with pytest.raises(DataError, match=rf"predictions\.json.*({message})"):
        score_r2r(predictions, annotations, mini)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version https://git-lfs.github.com/spec/v1\n", "git-LFS pointer"),
        ('[{"instr_id": "0', "not valid JSON"),
    ],
)
def test_a_broken_prediction_file_is_named(
    rolled: tuple[Path, Path], mini: MiniWorld, text: str, message: str
) -> None:
    rolled[0].write_text(text)
    with pytest.raises(DataError, match=rf"predictions\.json is .*{message}"):
        score_r2r(*rolled, mini)


def test_a_test_split_cannot_be_scored(tmp_path: Path) -> None:
    record = {"path_id": 1, "scan": "line", "heading": 0, "path": ["a"], "instructions": ["go"]}
    annotations = write_json(tmp_path / "R2R_test.json", [record])
    predictions = write_json(tmp_path / "p.json", [{"instr_id": "1_0", "trajectory": trajectory("ab")}])
    with pytest.raises(DataError, match=r"R2R_test\.json: item '1_0' holds only the start"):
        score_r2r(predictions, annotations, LINE)


def test_ndh(tmp_path: Path) -> None:
    annotations = write_json(
        tmp_path / "NDH.json",
        [ndh_record(1, "ab", "abc", "de"), ndh_record(2, "cd", "cb", "cd")],
    )
    predictions = write_json(
        tmp_path / "p.json",
        [{"inst_idx": 2, "trajectory": trajectory("c")}, {"inst_idx": 1, "trajectory": trajectory("abcd")}],
    )
    scores = score_ndh(predictions, annotations, LINE)
    assert scores.GP == pytest.approx((3 + 0) / 2)  # from 3 m to the nearest end; from an end to an end
    assert scores.NE == pytest.approx((1 + 1) / 2)  # trusted: the player came past b, and missed d
    assert score_ndh(predictions, annotations, LINE, target="planner").NE == pytest.approx((2 + 1) / 2)
    assert score_ndh(predictions, annotations, LINE, target="player").NE == pytest.approx((1 + 1) / 2)
    assert scores.SPL == pytest.approx((2 / 3 + 1) / 2)
    assert (scores.SR, scores.OPSR) == (1, 1)
    with pytest.raises(ValueError, match="target must be one of"):
        score_ndh(predictions, annotations, LINE, target="best")  # type: ignore[arg-type]


def test_hanna(tmp_path: Path) -> None:
    record = {
        "path_id": 1, "scan": "line", "heading": 0, "paths": [["a"], ["a", "b", "c", "d", "e"]],
        "instructions": ["find", "look"],
    }  # fmt: skip
    annotations = write_json(tmp_path / "hanna.json", [record])
    predictions = write_json(
        tmp_path / "p.json",
        [
            {"instr_id": "1_0", "agent_pose": trajectory("abc"), "agent_ask": [0, 1]},
            {"instr_id": "1_1", "trajectory": trajectory("abcd"), "agent_ask": [1, 1, 1]},
        ],
    )
    scores = score_hanna(predictions, annotations, LINE)
    assert scores.SR == 1  # exactly 2 m is success here
    assert scores.NE == pytest.approx((2 + 1) / 2)
    assert scores.requests == 2
    assert scores.SPL == pytest.approx(1)  # the last of equally near goals is e, 4 m from the start
    records = json.loads(predictions.read_text())
    del records[0]["agent_ask"]
    assert math.isnan(score_hanna(write_json(predictions, records), annotations, LINE).requests)


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = cli.main([str(word) for word in words])
    return status, *capsys.readouterr()


def test_the_command(
    capsys: pytest.CaptureFixture[str], rolled: tuple[Path, Path], tmp_path: Path, mini: MiniWorld
) -> None:
    out_file = tmp_path / "scores.json"
    status, out, err = call(capsys, "score", *rolled, "--connectivity", tmp_path, "--out", out_file)
    assert (status, err) == (0, "")
    scores = score_r2r(*rolled, mini)._asdict()
    assert json.loads(out_file.read_text()) == pytest.approx(scores)
    assert [line.split()[0] for line in out.splitlines()] == list(scores)
    assert f"SPL      {scores['SPL']:.4f}\n" in out


def test_the_command_for_other_tasks(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    LINE.to_connectivity_json(tmp_path)
    annotations = write_json(tmp_path / "NDH.json", [ndh_record(1, "ab", "abc", "de")])
    predictions = write_json(tmp_path / "p.json", [{"inst_idx": 1, "trajectory": trajectory("abcd")}])
    words = ["score", predictions, annotations, "--connectivity", tmp_path, "--task", "ndh"]
    for target in ("planner", "player", "trusted"):
        status, out, _ = call(capsys, *words, "--target", target)
        assert status == 0
        assert "GP       3.0000" in out


def test_the_command_says_what_is_wrong(
    capsys: pytest.CaptureFixture[str], rolled: tuple[Path, Path], tmp_path: Path
) -> None:
    status, _, err = call(capsys, "score", "absent.json", rolled[1], "--connectivity", tmp_path)
    assert (status, err) == (1, "fq-toolkit: absent.json does not exist\n")
    status, _, err = call(capsys, "score", *rolled, "--connectivity", tmp_path / "absent")
    assert status == 1
    assert "is not a folder" in err
    status, _, err = call(capsys, "score", *rolled, "--connectivity", tmp_path, "--target", "player")
    assert status == 2
    assert "--target belongs to --task ndh" in err
    assert call(capsys, "score")[0] == 2
    status, out, _ = call(capsys, "score", "--help")
    assert status == 0
    assert "fq-toolkit score" in out


def test_goal_progress_needs_an_end_that_can_be_reached(tmp_path: Path) -> None:
    line = LINE.scan("line")
    adjacent = line.adjacent.copy()
    adjacent[3, 4] = adjacent[4, 3] = False
    world = NavWorld([Scan("line", line.viewpoints, line.positions, adjacent)])
    annotations = write_json(tmp_path / "NDH.json", [ndh_record(1, "ab", "ab", "e")])
    predictions = write_json(tmp_path / "p.json", [{"inst_idx": 1, "trajectory": trajectory("ab")}])
    with pytest.raises(
        DataError, match=r"NDH\.json: item '1': unreachable goal: .* from 'a' to any of end_panos"
    ):
        score_ndh(predictions, annotations, world)
