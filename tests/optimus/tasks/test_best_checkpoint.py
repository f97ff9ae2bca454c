"""The best checkpoint of a run is kept, and every command on a run can ask for it, the last or any other."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fq_toolkit.cli import main
from fq_toolkit.optimus.tasks.vae.runs import load_model
from fq_toolkit.training.reporting.metrics_log import read_metrics
from fq_toolkit.training.storage.checkpoints import Checkpoints
from tests.optimus.tasks.small_runs import TASKS, train, write

OFTEN = ["--steps", "6", "--evaluate-every", "1", "--checkpoint-every", "0", "--keep-checkpoints", "1"]
# The learning rate is so high that the last step is not always the best one.
HIGH = ["--lr", "0.3", "--clip", "0"]
# task -> the column that chooses, and whether more is better
CHOSEN_BY = {
    "vae": ("held out/-ELBO", False),
    "label-conditional": ("label/from the prior", True),
    "dialog": ("BLEU/F1", True),
}


@pytest.fixture(scope="module", params=TASKS)
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def run(task: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp(task), task, [*OFTEN, *HIGH])


def best_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "checkpoints" / "best.json").read_text()))


def test_the_best_figure_of_the_curve_chooses(task: str, run: Path) -> None:
    column, highest = CHOSEN_BY[task]
    values = {int(row["step"]): row[column] for row in read_metrics(run / "metrics.csv")}
    wanted = (max if highest else min)(values.values())
    step = max(step for step, value in values.items() if value == wanted)
    best = best_of(run)
    assert (best["step"], best["column"]) == (step, column)
    assert best["value"] == pytest.approx(wanted, rel=1e-5)  # the table has six digits
    assert Checkpoints(run / "checkpoints").steps() == sorted({step, 6})


def test_it_is_measured_again_with_the_figure_that_chose_it(task: str, run: Path) -> None:
    assert main(["evaluate", str(run), "--checkpoint", "best"]) == 0
    record, best = json.loads((run / "evaluation.json").read_text()), best_of(run)
    field = {"vae": "negative_elbo", "label-conditional": "accuracy", "dialog": "bleu_f1"}[task]
    assert record["step"] == best["step"]
    assert record[field] == pytest.approx(best["value"], rel=1e-5)
    assert main(["evaluate", str(run)]) == 0
    assert json.loads((run / "evaluation.json").read_text())["step"] == 6


def test_its_weights_are_those_of_its_checkpoint(task: str, run: Path) -> None:
    inside = "" if task == "vae" else "base."
    for which, step in (("best", best_of(run)["step"]), ("last", 6), (6, 6)):
        saved = Checkpoints(run / "checkpoints").load(step).state["task"]["vae"]
        for name, value in load_model(run, checkpoint=which).state_dict().items():  # type: ignore[arg-type]
            assert torch.equal(value, saved[f"{inside}{name}"]), (which, name)


A, B = "the cat sees a .", "the dog hears b ."
COMMANDS = {
    "sample": ["--count", "1"],
    "reconstruct": [A],
    "interpolate": [A, B, "--steps", "2"],
    "analogy": [A, B, A],
    "evaluate": [],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_it(
    task: str, run: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        command,
        str(run),
        *COMMANDS[command],
        *(["what ?"] if (task, command) == ("dialog", "sample") else []),
    ]
    for which in ("best", "last", "6"):
        assert main([*words, "--checkpoint", which]) == 0, which
    capsys.readouterr()
    assert main([*words, "--checkpoint", "worst"]) == 2
    assert "'worst'; expected best, last or the step" in capsys.readouterr().err
    assert main([*words, "--checkpoint", "99"]) == 1
    assert "no checkpoint of step 99" in capsys.readouterr().err


def test_playing_classifying_and_drawing_take_it_too(
    task: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{A}\n"))
    assert main(["play", str(run), "--checkpoint", "best"]) == 0
    data, _ = write(tmp_path, "label-conditional")
    few = ["--data", str(data), "--per-class", "1", "--seeds", "1", "--finetune-steps", "0"]
    assert main(["classify", str(run), "--checkpoint", "best", *few, "--out", str(tmp_path / "c")]) == 0
    picture = tmp_path / "latents.png"
    rows = tmp_path / "rows.tsv"
    rows.write_text(data.read_text())
    shown = ["--data", str(data), "--valid", str(rows), "--out", str(picture)]
    assert main(["plot-latents", str(run), "--checkpoint", "best", *shown]) == 0
    assert picture.stat().st_size > 0


def test_a_checkpoint_is_read_without_the_data_once_there_is_a_model(
    task: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = run.parent / f"train{TASKS[task][0]}"
    content = data.read_text()
    data.unlink()
    try:
        assert main(["reconstruct", str(run), A, "--checkpoint", "best"]) == 0
        assert main(["evaluate", str(run)]) == 2
        assert str(data) in capsys.readouterr().err
    finally:
        data.write_text(content)
