"""An agent measured on another split or file: figures, submissions, secrets, leaks, and what is missing."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fq_toolkit.cli import main
from fq_toolkit.prevalent import FeatureStore, MiniWorld
from fq_toolkit.prevalent.miniworld.dialogs import write_dialogs
from fq_toolkit.prevalent.miniworld.requests import write_requests

TASKS = ("r2r", "ndh", "hanna")
STEM = {"r2r": "R2R", "ndh": "NDH", "hanna": "hanna", "speaker": "R2R"}
SEEN, UNSEEN, OTHER, ALONE = (MiniWorld(seed, num_scans=1, feature_dim=8) for seed in (0, 1, 2, 3))
WORLDS = {"train": SEEN, "val_unseen": UNSEEN, "test_unseen": OTHER, "test": OTHER, "nowhere": ALONE}
SECRETS = ("planner_path", "player_path", "end_panos")


def save_features(path: Path, *worlds: MiniWorld) -> Path:
    stores = [world.features() for world in worlds]
    keys = [key for store in stores for key in store.keys]
    rows = np.concatenate([store.panorama(store.rows(store.keys)) for store in stores])
    return FeatureStore(keys, rows).save_npz(path) or path


def hide_goals(path: Path) -> None:
    """Leave what the organizers of a challenge give away: the start and the words."""
    records = json.loads(path.read_text())
    for record in records:
        if "path" in record:
            record["path"] = record["path"][:1]
            del record["distance"]
        for name in SECRETS:
            record.pop(name, None)
    path.write_text(json.dumps(records))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data folder with a finished run of each trainer in it."""
    home = tmp_path_factory.mktemp("navigation")
    for name, world in WORLDS.items():
        world.write(home / name, 6, instructions=2).rename(home / f"R2R_{name}.json")
        write_dialogs(world, home / f"NDH_{name}.json", 6, seed=0)
        write_requests(world, home / f"hanna_{name}.json", 6, seed=0)
        if name != "nowhere":
            world.to_connectivity_json(home / "connectivity")
    for stem in ("R2R", "NDH"):
        hide_goals(home / f"{stem}_test.json")
    (home / "connectivity" / "scans.txt").unlink(missing_ok=True)
    save_features(home / "features.npz", SEEN, UNSEEN, OTHER)
    save_features(home / "fewer.npz", SEEN, UNSEEN)
    options = ["--steps", "2", "--batch-size", "4", "--device", "cpu", "--hidden-size", "8"]
    for task in (*TASKS, "speaker"):
        data = ["--data", str(home), "--connectivity", str(home / "connectivity")]
        data += ["--features", str(home / ("fewer.npz" if task == "hanna" else "features.npz"))]
        assert main(["train", task, *data, *options, "--out", str(home / task)]) == 0
    return home


def written(run: Path, kind: str, stem: str) -> Path:
    """Return the one file of a kind that belongs to a file of annotations, and forget it."""
    (found,) = run.glob(f"{kind}-{stem}-*.json")
    return found.rename(run / f"read-{kind}-{stem}.json")


def scores_of(predictions: Path, annotations: Path, task: str, folder: Path) -> dict[str, float]:
    out = folder / "scores.json"
    words = ["score", str(predictions), str(annotations), "--connectivity", str(folder / "connectivity")]
    assert main([*words, "--task", task, "--out", str(out)]) == 0
    return json.loads(out.read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("by_name", [True, False])
def test_the_score_of_the_predictions_is_that_of_the_evaluation(
    folder: Path, task: str, by_name: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run, file = folder / task, folder / f"{STEM[task]}_test_unseen.json"
    before = (run / "evaluation.json").read_bytes()
    which = ["--split", "test_unseen"] if by_name else ["--annotations", str(file)]
    more = ["--features", str(folder / "features.npz")] if task == "hanna" else []
    assert main(["evaluate", str(run), *which, *more, "--checkpoint", "2"]) == 0
    said = capsys.readouterr().out
    record = json.loads(written(run, "evaluation", file.stem).read_text())
    assert (run / "evaluation.json").read_bytes() == before
    (measured,) = record["measured_on"].values()
    assert measured["file"] == str(file)
    assert measured["items"] == {"r2r": 12}.get(task, 6)
    assert (record["step"], record["checkpoint"]) == (2, 2)
    assert f"{file} ({measured['items']} items, hash {measured['hash']})" in said
    assert "checkpoint of step 2" in said
    (scores,) = record["scores"].values()
    predictions = written(run, "predictions", file.stem)
    assert scores_of(predictions, file, task, folder) == pytest.approx(scores)
    check_submission(json.loads(predictions.read_text()), task)
    assert record["trained_on"] == 0


def check_submission(records: list[dict[str, Any]], task: str) -> None:
    """Check what the challenge servers read."""
    name = "inst_idx" if task == "ndh" else "instr_id"
    for record in records:
        assert isinstance(record[name], int if task == "ndh" else str)
        assert set(record) - {"agent_ask"} == {name, "trajectory"}
        for viewpoint, heading, elevation in record["trajectory"]:
            assert [type(viewpoint), type(heading), type(elevation)] == [str, float, float]


@pytest.mark.parametrize(
    ("task", "more"), [("r2r", []), ("r2r", ["--decoding", "beam", "--beam-width", "2"]), ("ndh", [])]
)
def test_a_split_that_keeps_its_goals_secret_is_predicted_and_not_measured(
    folder: Path, task: str, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run, file = folder / task, folder / f"{STEM[task]}_test.json"
    assert main(["evaluate", str(run), "--split", "test", *more]) == 0
    said = capsys.readouterr().out
    assert "keeps its goals secret" in said
    assert "no figures" in said
    assert not re.search(r"\bSR\b", said)
    record = json.loads(written(run, "evaluation", file.stem).read_text())
    assert "scores" not in record
    predictions = json.loads(written(run, "predictions", file.stem).read_text())
    check_submission(predictions, task)
    annotated = json.loads(file.read_text())
    starts = {r["start_pano"]["pano"] if task == "ndh" else r["path"][0] for r in annotated}
    assert {entry["trajectory"][0][0] for entry in predictions} == starts
    assert len(predictions) == {"r2r": 12, "ndh": 6}[task]


@pytest.mark.parametrize("task", ["r2r", "ndh"])  # HANNA publishes its test paths
def test_no_run_is_trained_on_secrets(folder: Path, task: str, capsys: pytest.CaptureFixture[str]) -> None:
    home = folder / "secret"
    home.mkdir(exist_ok=True)
    (home / f"{STEM[task]}_train.json").write_text((folder / f"{STEM[task]}_test.json").read_text())
    words = ["--data", str(home), "--connectivity", str(folder / "connectivity"), "--feature-dim", "8"]
    assert main(["train", task, *words, "--out", str(home / "run")]) == 1
    assert "holds only the start" in capsys.readouterr().err


@pytest.mark.parametrize("task", [*TASKS, "speaker"])
def test_what_was_trained_on_is_counted(
    folder: Path, task: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    trained, other = (
        json.loads((folder / f"{STEM[task]}_{name}.json").read_text()) for name in ("train", "test_unseen")
    )
    for number, record in enumerate(other):
        for name in ("path_id", "inst_idx"):
            if name in record:
                record[name] = 1000 + number
    mixed = folder / f"mixed_{task}.json"
    mixed.write_text(json.dumps([*trained[:2], *other]))
    more = ["--features", str(folder / "features.npz")] if task == "hanna" else []
    with caplog.at_level(logging.WARNING, logger="fq_toolkit"):
        assert main(["evaluate", str(folder / task), "--annotations", str(mixed), *more]) == 0
    count = 4 if STEM[task] == "R2R" else 2
    total = 16 if STEM[task] == "R2R" else 8
    assert f"{count} of the {total} items of {mixed} were trained on" in caplog.text
    assert json.loads(written(folder / task, "evaluation", mixed.stem).read_text())["trained_on"] == count


@pytest.mark.parametrize("task", [*TASKS, "speaker"])
def test_what_is_missing_is_named(folder: Path, task: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(folder / task)
    scan = ALONE.names[0]
    file = folder / f"{STEM[task]}_nowhere.json"
    assert main(["evaluate", run, "--annotations", str(file)]) == 1
    said = capsys.readouterr().err
    assert f"1 of its 1 scans have no graph in {folder / 'connectivity'}: {scan}" in said
    assert main(["evaluate", run, "--split", "test_unsen"]) == 2
    assert "did you mean 'test_unseen'" in capsys.readouterr().err
    assert main(["evaluate", run, "--annotations", str(folder / "none.json")]) == 1
    assert "none.json does not exist" in capsys.readouterr().err
    assert main(["evaluate", run, "--split", "test", "--annotations", str(file)]) == 2
    assert "one of them" in capsys.readouterr().err
    assert main(["evaluate", run, "--features", str(folder / "features.npz")]) == 2
    assert "--features belongs to --split or --annotations" in capsys.readouterr().err
    fewer = ["--features", str(folder / "fewer.npz")]
    assert main(["evaluate", run, "--split", "test_unseen", *fewer]) == 1
    said = capsys.readouterr().err
    assert (
        f"no features of 1 of the 1 scans of {folder / STEM[task]}_test_unseen.json: {OTHER.names[0]}" in said
    )
    assert "--features" in said


def test_a_speaker_is_measured_on_another_split(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, file = folder / "speaker", folder / "R2R_test_unseen.json"
    before = (run / "evaluation.json").read_bytes()
    assert main(["evaluate", str(run), "--split", "test_unseen"]) == 0
    assert "BLEU" in capsys.readouterr().out
    record = json.loads(written(run, "evaluation", file.stem).read_text())
    assert set(record["bleu"]) == {"test_unseen"}
    assert record["measured_on"]["test_unseen"]["file"] == str(file)
    assert (run / "evaluation.json").read_bytes() == before
    spoken = json.loads(written(run, "instructions", file.stem).read_text())
    assert len(spoken) == 6  # paths: each has two instructions
    assert all(isinstance(entry["instruction"], str) for entry in spoken)
    assert main(["evaluate", str(run), "--split", "test"]) == 1
    assert "has no path to describe" in capsys.readouterr().err


def test_generated_worlds_have_other_splits_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    options = ["--steps", "1", "--batch-size", "4", "--device", "cpu", "--scans", "1", "--train-items", "6"]
    run = str(tmp_path / "run")
    assert main(["train", "r2r", *options, "--validation-items", "3", "--out", run]) == 0
    assert main(["evaluate", run, "--split", "train"]) == 0
    assert "6 of the 6 items of MiniWorld(0) were trained on" in caplog.text
    assert list((tmp_path / "run").glob("evaluation-train-*.json"))
    assert list((tmp_path / "run").glob("predictions-train-*.json"))
    file = MiniWorld(0, num_scans=1).write(tmp_path / "more", 4, seed=9, instructions=1)
    assert main(["evaluate", run, "--annotations", str(file)]) == 0
    assert str(file) in capsys.readouterr().out
    assert main(["evaluate", run, "--split", "test"]) == 2
    assert "train, val_seen, val_unseen" in capsys.readouterr().err
