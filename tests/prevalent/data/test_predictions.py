"""Predictions of other agents: understood as they were written, or refused."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fq_toolkit.prevalent import DataError, load_hanna, load_ndh, load_predictions, score_r2r
from fq_toolkit.prevalent.world.items import NavItem
from tests.prevalent.world.worlds import line_world, write_json

ITEM = NavItem("1_0", "line", 0.0, ("a", "b", "c", "d"), ("d",), "go")


def read(folder: Path, trajectory: Any, name: str = "trajectory") -> list[str]:
    path = write_json(folder / "p.json", [{"instr_id": "1_0", name: trajectory}])
    return load_predictions(path, [ITEM])[0]["path"]


@given(st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4), min_size=1, max_size=5))
def test_every_viewpoint_of_every_decision_counts(
    tmp_path_factory: pytest.TempPathFactory, steps: list[list[str]]
) -> None:
    """Of a walk back over the map only the first viewpoint was kept."""
    folder = tmp_path_factory.mktemp("p")
    walked = [viewpoint for step in steps for viewpoint in step]
    assert read(folder, steps) == walked
    assert read(folder, [[viewpoint, 0.5, 0] for viewpoint in walked]) == walked
    assert read(folder, walked, "path") == read(folder, steps, "path") == walked


def test_decisions_score_as_their_poses_do(tmp_path: Path) -> None:
    world = line_world(1, 1, 1, 1)
    record = {"path_id": 1, "scan": "line", "heading": 0.0, "path": list("abcde"), "instructions": ["go"]}
    annotations = write_json(tmp_path / "a.json", [record])
    decisions = write_json(
        tmp_path / "d.json", [{"instr_id": "1_0", "trajectory": [["a"], ["b", "c"], ["d", "e"]]}]
    )
    poses = write_json(
        tmp_path / "p.json", [{"instr_id": "1_0", "trajectory": [[v, 0.0, 0.0] for v in "abcde"]}]
    )
    assert score_r2r(decisions, annotations, world) == score_r2r(poses, annotations, world)


@pytest.mark.parametrize(
    "step",
    ["a", ["a", 0.0], ["a", 0.0, 0.0, 0.0], ["a", "b", 0.0], ["a", 0.0, "b"], ["a", ["b"]], [["a"], ["b"]],
     [], [""], [0.0, 0.0, "a"], ["a", True, 0.0], ["a", None, None], ["a", float("nan"), 0.0], None, 3,
     {"viewpoint": "a"}],
)  # fmt: skip
@pytest.mark.parametrize("name", ["trajectory", "agent_pose", "path"])
def test_steps_of_another_form_are_refused(tmp_path: Path, name: str, step: Any) -> None:
    with pytest.raises(DataError, match=r"p\.json: instr_id '1_0': step 1 .*expected \[viewpoint, heading"):
        read(tmp_path, [["a", 0.0, 0.0], step], name)


def test_two_ways_in_one_record_must_agree(tmp_path: Path) -> None:
    record = {"instr_id": "1_0", "trajectory": [["a", 0, 0], ["b", 0, 0]], "path": ["a", "b"]}
    assert load_predictions(write_json(tmp_path / "p.json", [record]), [ITEM])[0]["path"] == ["a", "b"]
    with pytest.raises(DataError, match="trajectory and path are two different ways"):
        load_predictions(write_json(tmp_path / "p.json", [{**record, "path": ["a"]}]), [ITEM])
    with pytest.raises(DataError, match="several ids that differ"):
        load_predictions(write_json(tmp_path / "p.json", [{**record, "inst_idx": 2}]), [ITEM])


@pytest.mark.parametrize("name", ["p.json", "p.jsonl", "p.ndjson", "p.JSONL"])
@pytest.mark.parametrize("packed", [False, True])
def test_compressed_files_and_lines_are_read(tmp_path: Path, name: str, packed: bool) -> None:
    records = [{"instr_id": f"{i}_0", "path": ["a"]} for i in range(3)]
    items = [ITEM._replace(instr_id=f"{i}_0") for i in range(3)]
    lines = "\n".join(map(json.dumps, records)) + "\n\n"
    content = (lines if "json" != name.split(".")[1] else json.dumps(records)).encode()
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(content) if packed else content)
    assert [record["instr_id"] for record in load_predictions(path, items)] == ["0_0", "1_0", "2_0"]


FOREIGN: dict[str, tuple[bytes, str]] = {
    "pickle": (b"\x80\x04\x95\x00", "is a pickle"),
    "npz": (b"PK\x03\x04rest", "is a zip archive"),
    "hdf5": (b"\x89HDF\r\n\x1a\nrest", "is an HDF5 file"),
    "page": (b"\n<!DOCTYPE html><html>", "is HTML or XML"),
    "lines": (b'{"instr_id": "1_0"}\n{"instr_id": "2_0"}\n', r"name it \.jsonl"),
    "episodes": (b'{"episodes": []}', "episodes of VLN-CE"),
    "positions": (b'{"1": [{"position": [0, 0, 0], "stop": false}]}', "trajectories of VLN-CE"),
    "cut gzip": (gzip.compress(b"[]" * 999)[:20], "truncated or damaged"),
    "pickle in gzip": (gzip.compress(b"\x80\x04\x95\x00"), "is a pickle"),
    "bomb": (gzip.compress(b" " * (80 << 20)), "unpacks to more than"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_other_files_are_called_what_they_are(tmp_path: Path, kind: str) -> None:
    content, message = FOREIGN[kind]
    path = tmp_path / "p.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"p\.json.*{message}"):
        load_predictions(path, [ITEM])


@pytest.mark.parametrize("load", [load_ndh, load_hanna, lambda path: load_predictions(path, [ITEM])])
def test_what_is_no_plain_file_is_not_opened(tmp_path: Path, load: Any) -> None:
    """Opening a named pipe waits for somebody to write to it."""
    os.mkfifo(tmp_path / "p.json")
    with pytest.raises(DataError, match="no plain file"):
        load(tmp_path / "p.json")
    with pytest.raises(DataError, match="is a folder"):
        load(tmp_path)
