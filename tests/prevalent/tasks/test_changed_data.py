"""A run and its data belong together: no checkpoint is read and no training goes on with other data."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fq_toolkit.cli import main
from fq_toolkit.prevalent import FeatureStore, MiniWorld
from fq_toolkit.prevalent.miniworld.dialogs import write_dialogs
from fq_toolkit.prevalent.miniworld.requests import write_requests

OPTIONS = ["--steps", "2", "--batch-size", "4", "--feature-dim", "8", "--device", "cpu"]
FILES = {
    "prevalent": "R2R_train.json",
    "r2r": "R2R_train.json",
    "speaker": "R2R_train.json",
    "ndh": "NDH_train.json",
    "hanna": "hanna_train.json",
}
SAYS = "are not those the run was started with"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the three datasets, made of two worlds, and features in a file."""
    seen, unseen = MiniWorld(0, num_scans=2, feature_dim=8), MiniWorld(1, num_scans=1, feature_dim=8)
    for name, world, count in (("train", seen, 8), ("val_unseen", unseen, 3)):
        world.write(tmp_path / name, count, instructions=1).rename(tmp_path / f"R2R_{name}.json")
        write_dialogs(world, tmp_path / f"NDH_{name}.json", count, seed=0)
        write_requests(world, tmp_path / f"hanna_{name}.json", count, seed=0)
        world.to_connectivity_json(tmp_path / "connectivity")
    (tmp_path / "connectivity" / "scans.txt").unlink(missing_ok=True)
    stores = [seen.features(), unseen.features()]
    keys = [key for store in stores for key in store.keys]
    rows = np.concatenate([store.panorama(store.rows(store.keys)) for store in stores])
    FeatureStore(keys, rows).save_npz(tmp_path / "features.npz")
    return tmp_path


def other_words(folder: Path, trainer: str) -> None:
    """Exchange two words everywhere: as many words as before, and each number means another one."""
    path = folder / FILES[trainer]
    text = path.read_text().replace("left", "RIGHT").replace("right", "left").replace("RIGHT", "right")
    path.write_text(text.replace("the ", "teh ", 1))


def other_order(folder: Path, trainer: str) -> None:
    path = folder / FILES[trainer]
    path.write_text(json.dumps(json.loads(path.read_text())[::-1]))


def other_graph(folder: Path, trainer: str) -> None:
    """Move every viewpoint: names and edges stay, ways and directions do not."""
    for path in (folder / "connectivity").glob("*.json"):
        records: list[dict[str, Any]] = json.loads(path.read_text())
        for number, record in enumerate(records):
            record["pose"][3] += number % 3
        path.write_text(json.dumps(records))


def other_features(folder: Path, trainer: str) -> None:
    store = FeatureStore.from_npz(folder / "features.npz")
    keys, rows = store.keys, store.panorama(store.rows(store.keys)) + 1
    FeatureStore(keys, rows).save_npz(folder / "features.npz")


@pytest.mark.parametrize("trainer", FILES)
def test_no_run_goes_on_or_is_measured_with_other_data(
    folder: Path, trainer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers of words, orders of items and slots of neighbours come from the data, not the checkpoint."""
    run = str(folder / "run")
    data = ["--data", str(folder), "--connectivity", str(folder / "connectivity")]
    data += ["--features", str(folder / "features.npz")]
    assert main(["train", trainer, *data, "--out", run, *OPTIONS]) == 0
    again = [["train", trainer, "--resume", run], ["evaluate", run]]
    if trainer not in ("speaker", "prevalent"):
        again += [["navigate", run]]
    changes: list[Callable[[Path, str], None]] = [other_words, other_order, other_graph, other_features]
    if trainer not in ("prevalent", "r2r"):  # these say it the same way
        changes = changes[:1]
    for change in changes:
        kept = {path: path.read_bytes() for path in folder.rglob("*.*") if "run" not in path.parts}
        change(folder, trainer)
        capsys.readouterr()
        assert [main(words) for words in again] == [1] * len(again), change
        assert capsys.readouterr().err.count(SAYS) == len(again), change
        for path, content in kept.items():
            if path.is_file():
                path.write_bytes(content)
    assert [main(words) for words in again] == [0] * len(again)


def last_item(folder: Path, name: str) -> None:
    """Leave out the last item of a file."""
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text())[:-1]))


@pytest.mark.parametrize("trainer", FILES)
def test_no_run_goes_on_or_is_measured_on_other_items(
    folder: Path, trainer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, name = str(folder / "run"), FILES[trainer].replace("train", "val_unseen")
    data = ["--data", str(folder), "--connectivity", str(folder / "connectivity")]
    data += ["--features", str(folder / "features.npz")]
    assert main(["train", trainer, *data, "--out", run, *OPTIONS]) == 0
    (measured,) = json.loads((folder / "run" / "evaluation.json").read_text())["measured_on"].values()
    count = len(json.loads((folder / name).read_text()))
    assert measured["file"] == str(folder / name)
    assert measured["items"] >= count  # an entry of R2R has several instructions
    assert len(measured["hash"]) == 12
    line = f"measured on {folder / name} ({measured['items']} items, hash {measured['hash']})"
    again = [["train", trainer, "--resume", run], ["evaluate", run]]
    for words in [[], *again]:
        assert not words or main(words) == 0
        assert line in capsys.readouterr().out
    kept = (folder / name).read_bytes()
    changes = [last_item, another_word, *([shorter_plan] if trainer == "ndh" else [])]
    for change in changes:
        change(folder, name)
        for words in again:
            assert main(words) == 1, (change, words)
            said = capsys.readouterr().err
            assert f"{folder / name}, or what belongs to its items, is not what" in said
            assert f"{measured['items']} items with hash {measured['hash']} at step 2" in said
        (folder / name).write_bytes(kept)
    assert [main(words) for words in again] == [0, 0]


def another_word(folder: Path, name: str) -> None:
    """Change one word, which is in the instructions of all tasks."""
    text = (folder / name).read_text()
    assert " to " in text
    (folder / name).write_text(text.replace(" to ", " by ", 1))


def shorter_plan(folder: Path, name: str) -> None:
    """Let the planner of the first dialog turn end elsewhere: goal progress is measured from its path."""
    records = json.loads((folder / name).read_text())
    records[0]["planner_path"].pop()
    (folder / name).write_text(json.dumps(records))


def test_routes_of_helpers_are_what_is_measured_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, routes = str(folder / "run"), folder / "R2R_val_unseen.json"
    data = ["--data", str(folder), "--connectivity", str(folder / "connectivity"), "--routes", str(routes)]
    data += ["--features", str(folder / "features.npz")]
    assert main(["train", "hanna", *data, "--out", run, *OPTIONS]) == 0
    assert main(["evaluate", run]) == 0
    another_word(folder, routes.name)
    assert main(["evaluate", run]) == 1
    assert "is not what the run was measured on" in capsys.readouterr().err
