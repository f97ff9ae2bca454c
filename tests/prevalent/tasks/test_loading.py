"""What cannot be trained on or measured is said before the first update, not after the last one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fq_toolkit.cli import main
from fq_toolkit.prevalent import (
    DataError,
    FeatureStore,
    MiniWorld,
    Vocabulary,
    action_label,
    collect_triplets,
    load_ndh,
    save_triplets,
)
from fq_toolkit.prevalent.miniworld.dialogs import write_dialogs
from fq_toolkit.prevalent.miniworld.requests import write_requests
from fq_toolkit.prevalent.tasks.pretraining.config import PretrainingConfig
from fq_toolkit.prevalent.tasks.pretraining.data import load_pretraining_data
from fq_toolkit.prevalent.tasks.r2r.data import shuffle_instructions

SEEN, UNSEEN = (MiniWorld(seed, num_scans=1, feature_dim=8) for seed in (0, 1))
OPTIONS = ["--steps", "1", "--batch-size", "4", "--feature-dim", "8", "--device", "cpu"]
STEM = {"ndh": "NDH", "hanna": "hanna"}
Record = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, world, count in (("train", SEEN, 8), ("val_unseen", UNSEEN, 3)):
        world.write(tmp_path / name, count, instructions=1).rename(tmp_path / f"R2R_{name}.json")
        write_dialogs(world, tmp_path / f"NDH_{name}.json", count, seed=0)
        write_requests(world, tmp_path / f"hanna_{name}.json", count, seed=0)
        world.to_connectivity_json(tmp_path / "connectivity")
    (tmp_path / "connectivity" / "scans.txt").unlink(missing_ok=True)
    return tmp_path


def nothing(records: list[Record]) -> None:
    records.clear()


def no_goal(records: list[Record]) -> None:
    """Leave the start alone, as the test split does."""
    records[1]["path"] = records[1]["path"][:1]
    del records[1]["distance"]


def jump(records: list[Record]) -> None:
    del records[1]["path"][1]


def wander(records: list[Record]) -> None:
    records[1]["path"] = records[1]["path"][:2] * 60 + records[1]["path"]


def no_words(records: list[Record]) -> None:
    for record in records:
        record["instructions"] = [""]


def lost_planner(records: list[Record]) -> None:
    records[1]["planner_path"][-1] = "nowhere"


def named(records: list[Record]) -> None:
    records[1]["inst_idx"] = "a1"


CASES: list[tuple[str, str, Callable[[list[Record]], None], str]] = [
    *((t, split, nothing, "no instruction") for t in ("prevalent", "speaker", "r2r", "ndh", "hanna")
      for split in ("train", "val_unseen")),
    ("r2r", "train", no_goal, "holds only the start"),
    ("r2r", "val_unseen", no_goal, "holds only the start"),
    ("speaker", "train", jump, "there is no edge"),
    ("speaker", "val_unseen", jump, "there is no edge"),
    ("speaker", "train", wander, "at most 100"),
    ("speaker", "val_unseen", wander, "at most 100"),
    ("prevalent", "train", no_words, "no words"),
    ("ndh", "val_unseen", lost_planner, "nowhere"),
    ("ndh", "val_unseen", named, "a1"),
]  # fmt: skip


@pytest.mark.parametrize(("trainer", "split", "change", "says"), CASES)
def test_unusable_annotations_leave_no_run_behind(
    folder: Path,
    trainer: str,
    split: str,
    change: Callable[[list[Record]], None],
    says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = folder / f"{STEM.get(trainer, 'R2R')}_{split}.json"
    records = json.loads(path.read_text())
    change(records)
    path.write_text(json.dumps(records))
    data = ["--data", str(folder), "--connectivity", str(folder / "connectivity")]
    more = ["--target", "player"] if change is lost_planner else []
    assert main(["train", trainer, *data, "--out", str(folder / "run"), *OPTIONS, *more]) == 1
    error = capsys.readouterr().err
    assert says in error
    assert change is no_words or str(path) in error
    assert not (folder / "run").exists()


@pytest.mark.parametrize("trainer", ["r2r", "speaker", "ndh", "hanna"])
def test_features_must_be_there_for_all_buildings_before_training(
    folder: Path, trainer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [key for world in (SEEN, UNSEEN) for key in world.features().keys][:-1]
    FeatureStore(keys, np.zeros((len(keys), 36, 8))).save_npz(folder / "some.npz")
    data = ["--data", str(folder), "--connectivity", str(folder / "connectivity")]
    data += ["--features", str(folder / "some.npz"), "--out", str(folder / "run")]
    assert main(["train", trainer, *data, *OPTIONS]) == 1
    assert "no features of viewpoint" in capsys.readouterr().err
    assert not (folder / "run").exists()


def test_regions_of_a_dialog_must_be_in_reach(folder: Path) -> None:
    path, world = folder / "NDH_train.json", MiniWorld(0, num_scans=1)
    scan = world.scan(world.names[0])
    scan.distances[:] = np.where(np.eye(len(scan), dtype=bool), 0.0, np.inf)
    records = json.loads(path.read_text())[:1]
    records[0]["planner_path"] = records[0]["player_path"] = records[0]["planner_path"][:1]
    records[0]["end_panos"] = [next(v for v in scan.viewpoints if v != records[0]["planner_path"][0])]
    path.write_text(json.dumps(records))
    with pytest.raises(DataError, match="unreachable"):
        load_ndh(path, world=world)


def test_one_instruction_cannot_be_exchanged() -> None:
    with pytest.raises(DataError, match="at least two"):
        shuffle_instructions(SEEN.items(1), seed=0)


def triplet_config(folder: Path, kind: Any) -> PretrainingConfig:
    """Write triplets with released numbering."""
    vocabulary = Vocabulary.train(item.instruction for item in SEEN.items(8))
    vocabulary.save(folder / "v.json")
    for name, world in (("t", SEEN), ("e", UNSEEN)):
        save_triplets(folder / f"{name}.json", collect_triplets(world, world.items(8), vocabulary.encode))
    return PretrainingConfig(
        data=str(folder / "t.json"), validation=str(folder / "e.json"), vocabulary=str(folder / "v.json"),
        connectivity=str(folder / "connectivity"), feature_dim=8, action_label=kind,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["prevalent", "view36", "candidate"])
def test_actions_of_triplets_are_numbered_as_the_head_numbers_them(folder: Path, kind: Any) -> None:
    """Files are numbered as released; another numbering must point at the same neighbours."""
    train = load_pretraining_data(triplet_config(folder, kind)).train
    wanted = [
        action_label(SEEN, here[0], here[1], here[2], None if there is None else there[1], kind=kind)
        for triplet in json.loads((folder / "t.json").read_text())
        for here, there in zip(triplet["path"], [*triplet["path"][1:], None], strict=True)
    ]
    assert train._actions.tolist() == wanted


@pytest.mark.parametrize(
    ("field", "place", "value"),
    [
        ("teacher_actions", 0, 36),
        ("instr_encoding", slice(0, 80), [0] * 80),
        ("instr_encoding", 2, 0),
        ("instr_encoding", 2, 1.5),
    ],
)
def test_triplets_that_cannot_be_read_are_named(folder: Path, field: str, place: Any, value: Any) -> None:
    config, path = triplet_config(folder, "prevalent"), folder / "t.json"
    records = json.loads(path.read_text())
    records[3][field][place] = value
    path.write_text(json.dumps(records))
    with pytest.raises(DataError, match=f"{path}.*{records[3]['instr_id']}"):
        load_pretraining_data(config)
