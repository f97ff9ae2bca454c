"""Speaker, NDH and HANNA on files: they train on them, and wrong ones are named with file and item."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fq_toolkit.cli import main
from fq_toolkit.prevalent import MiniWorld
from fq_toolkit.prevalent.miniworld.dialogs import dialog_records
from fq_toolkit.prevalent.miniworld.requests import request_records
from fq_toolkit.prevalent.world.features import FEATURE_DIM

SMALL = ("--steps", "2", "--batch-size", "4", "--hidden-size", "16", "--device", "cpu", "--features")
SPLITS = {"train": 1, "val_seen": 2, "val_unseen": 3}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Write a building for training and another one for val_unseen, with the files of all three tasks."""
    folder = tmp_path / "data"
    world = MiniWorld(3, feature_dim=FEATURE_DIM)
    world.write(folder, 2)
    inside, outside = world.names
    known: set[str] = set()
    for split, seed in SPLITS.items():
        where = outside if split == "val_unseen" else inside
        for name, records in {
            "R2R": world.annotations(60, seed=seed),
            "NDH": dialog_records(world, 60, seed=seed),
            "hanna": request_records(world, 60, seed=seed),
        }.items():
            # Ways in one small building repeat: val_seen takes those that training has not.
            here = [r for r in records if r["scan"] == where and _way(r) not in known][:6]
            known |= {_way(record) for record in here}
            _write(folder / f"{name}_{split}.json", here)
    return folder


def _way(record: dict[str, Any]) -> str:
    return json.dumps(record.get("path") or record.get("paths") or record["player_path"])


def _write(path: Path, records: Any) -> None:
    path.write_text(json.dumps(records))


def run(trainer: str, files: Path, *more: str, features: str = "features.npz") -> int:
    words = ["train", trainer, "--data", str(files), "--connectivity", str(files), *SMALL]
    return main([*words, str(files / features), "--out", str(files.parent / "run"), *more])


@pytest.mark.parametrize("trainer", ["speaker", "ndh", "hanna"])
def test_files_train(trainer: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--routes", str(files / "R2R_train.json")) if trainer == "hanna" else ()
    assert run(trainer, files, *more) == 0
    printed = capsys.readouterr().out
    assert "val_seen" in printed
    assert "synthesised" not in printed


def test_noise_is_called_noise(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "ndh", "--data", str(files), "--connectivity", str(files), *SMALL[:-1]]
    assert main([*words, "--feature-dim", "8", "--out", str(files.parent / "run")]) == 0
    assert "features synthesised: these figures say nothing about vision" in capsys.readouterr().out
    assert json.loads((files.parent / "run" / "evaluation.json").read_text())["features_synthesised"] is True


def test_augmentation_stays_in_the_training_scans(files: Path) -> None:
    assert run("speaker", files) == 0
    out = files.parent / "more.json"
    assert main(["augment", str(files.parent / "run"), "--out", str(out), "--paths", "20"]) == 0
    assert {record["scan"] for record in json.loads(out.read_text())} == {MiniWorld(3).names[0]}


def _leak_path(files: Path, task: str) -> None:
    held_out = json.loads((files / f"{task}_val_unseen.json").read_text())[2]
    name = "inst_idx" if task == "NDH" else "path_id"
    training = json.loads((files / f"{task}_train.json").read_text())
    _write(files / f"{task}_train.json", [*training, {**held_out, name: 777}])


def _leak_dialog(files: Path) -> None:
    held_out = json.loads((files / "NDH_val_seen.json").read_text())[1]
    training = json.loads((files / "NDH_train.json").read_text())
    _write(files / "NDH_train.json", [*training, {**held_out, "inst_idx": 777}])


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def _change(path: Path, **fields: Any) -> None:
    records = json.loads(path.read_text())
    records[1].update(fields)
    _write(path, records)


CASES: list[tuple[str, Callable[[Path], None], str]] = [
    ("ndh", lambda f: _leak_path(f, "NDH"), r"NDH_train\.json: item '777' has the path of the held-out item"),
    ("ndh", _leak_dialog, r"NDH_train\.json: item '777' is the held-out item"),
    (
        "hanna",
        lambda f: _leak_path(f, "hanna"),
        r"hanna_train\.json: item '777_0' has the path of the held-out",
    ),
    (
        "speaker",
        lambda f: _leak_path(f, "R2R"),
        r"R2R_train\.json: item '777_0' has the path of the held-out",
    ),
    ("ndh", lambda f: _cut(f / "NDH_train.json"), r"NDH_train\.json is not valid JSON.*truncated"),
    ("hanna", lambda f: _pointer(f / "hanna_train.json"), r"hanna_train\.json is a git-LFS pointer"),
    (
        "ndh",
        lambda f: _change(f / "NDH_train.json", scan="nowhere"),
        r"NDH_train\.json: item '\d+'.*'nowhere'",
    ),
    ("hanna", lambda f: _change(f / "hanna_train.json", paths=[]), r"hanna_train\.json: path_id \d+.*paths"),
    ("ndh", lambda f: (f / "NDH_train.json").unlink(), r"NDH_train\.json does not exist"),
    ("speaker", lambda f: _cut(f / "features.npz"), r"features\.npz"),
]


@pytest.mark.parametrize(("trainer", "spoil", "message"), CASES)
def test_wrong_files_are_named(
    trainer: str,
    spoil: Callable[[Path], None],
    message: str,
    files: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(files)
    assert run(trainer, files) == 1
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("trainer", ["speaker", "ndh", "hanna"])
def test_features_of_another_width_are_named(
    trainer: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(trainer, files, "--feature-dim", "32") == 1
    error = capsys.readouterr().err
    assert "features.npz" in error
    assert "32" in error
    assert str(FEATURE_DIM) in error


def test_an_unknown_kind_of_features_is_refused(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ndh", files, features="features.zip") == 2
    assert "features.zip" in capsys.readouterr().err


def test_a_pretraining_run_that_is_none_is_named(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ndh", files, "--pretrained", str(files)) == 1
    assert "config.json" in capsys.readouterr().err


def _lengthen(path: Path, words: int = 90) -> str:
    """Give the second record of a file a long instruction; return the name of the instruction."""
    _change(path, instructions=["go " * words])
    return f"{json.loads(path.read_text())[1]['path_id']}_0"


LONG = [
    ("prevalent", "R2R_train"), ("prevalent", "R2R_val_unseen"), ("r2r", "R2R_train"),
    ("r2r", "R2R_val_seen"), ("hanna", "hanna_train"), ("hanna", "hanna_val_unseen"),
    ("speaker", "R2R_train"),
]  # fmt: skip


@pytest.mark.parametrize(("trainer", "name"), LONG)
def test_a_long_instruction_is_named_or_cut_and_counted(
    trainer: str, name: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    instruction = _lengthen(files / f"{name}.json")
    assert run(trainer, files) == 1
    expected = rf"{name}\.json: instruction '{instruction}' has 90 tokens, more than the limit of 78: raise "
    error = capsys.readouterr().err
    assert re.search(expected + r".*--max-tokens 90.*--long-instructions cut", error)
    assert run(trainer, files, "--long-instructions", "cut", "--dry-run") == 0
    printed = capsys.readouterr().out
    held_out = "0 train, 1 held out" if "val" in name else "1 train, 0 held out"
    split = held_out if trainer == "prevalent" else f"1 {name.partition('_')[2]}"
    assert f"cut at their end to 78 tokens: {split}" in printed
    assert run(trainer, files, "--max-tokens", "90", "--dry-run") == 0
    assert "cut at" not in capsys.readouterr().out


@pytest.mark.parametrize("trainer", ["r2r", "speaker"])
def test_what_was_cut_stays_in_the_record(trainer: str, files: Path) -> None:
    _lengthen(files / "R2R_train.json")
    assert run(trainer, files, "--long-instructions", "cut") == 0
    record, folder = files.parent / "run" / "evaluation.json", str(files.parent / "run")
    assert json.loads(record.read_text())["instructions_cut"]["train"] == 1
    assert main(["evaluate", folder]) == 0
    assert json.loads(record.read_text())["instructions_cut"]["train"] == 1


@pytest.mark.parametrize("trainer", ["prevalent", "r2r"])
def test_a_long_synthesised_instruction_is_named_or_cut_and_counted(
    trainer: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = files.parent / "more.json"
    more.write_text((files / "R2R_train.json").read_text())
    instruction = _lengthen(more)
    assert run(trainer, files, "--augmented", str(more)) == 1
    assert f"more.json: instruction '{instruction}' has 90 tokens" in capsys.readouterr().err
    assert run(trainer, files, "--augmented", str(more), "--long-instructions", "cut", "--dry-run") == 0
    assert f"78 tokens: 1 {'train' if trainer == 'prevalent' else 'augmented'}" in capsys.readouterr().out


@pytest.mark.parametrize("trainer", ["prevalent", "r2r"])
def test_a_validation_path_in_synthesised_data_is_named(
    trainer: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = files.parent / "more.json"
    _write(more, [{**json.loads((files / "R2R_val_seen.json").read_text())[1], "path_id": 777}])
    assert run(trainer, files, "--augmented", str(more)) == 1
    assert "more.json: item '777_0' has the path of the held-out item" in capsys.readouterr().err


def test_dialogs_are_cut_on_the_left_and_counted(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turn = {"nav_idx": 0, "role": "navigator", "message": "go " * 90}
    _change(files / "NDH_train.json", dialog_history=[turn])
    assert run("ndh", files, "--max-tokens", "78", "--dry-run") == 0
    assert "oldest words of dialogs cut to 78 tokens: 1 train" in capsys.readouterr().out


@pytest.mark.parametrize("trainer", ["prevalent", "r2r", "hanna", "speaker"])
def test_a_run_from_before_the_option_says_what_to_give_and_goes_on(
    trainer: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = ("--long-instructions", "cut")
    instruction = _lengthen(files / ("hanna_train.json" if trainer == "hanna" else "R2R_train.json"))
    assert run(trainer, files, *cut) == 0
    folder = files.parent / "run"
    options = json.loads((folder / "config.json").read_text())
    del options["long_instructions"]
    _write(folder / "config.json", options)
    assert main(["train", trainer, "--resume", str(folder)]) == 1
    assert f"instruction '{instruction}' has 90 tokens" in capsys.readouterr().err
    assert main(["train", trainer, "--resume", str(folder), *cut]) == 0
    assert json.loads((folder / "config.json").read_text())["long_instructions"] == "cut"
    assert main(["evaluate", str(folder)]) == 0
