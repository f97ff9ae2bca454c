"""Runs of speaker, NDH and HANNA: exact resume, what they leave, evaluation."""

import json
from pathlib import Path

import pytest

from fq_toolkit.cli import main
from fq_toolkit.training.session import train
from fq_toolkit.training.storage.run_folder import RunFolder
from tests.prevalent.tasks.small_runs import RUNS, same


@pytest.mark.parametrize("name", list(RUNS))
def test_a_stopped_run_goes_on_bit_by_bit(name: str, runs: dict[str, Path], tmp_path: Path) -> None:
    trainer, config = RUNS[name]
    train(trainer, config, out=tmp_path / "run", stop_after=2)
    train(trainer, resume=tmp_path / "run")
    first, second = (
        RunFolder.open(path).checkpoints().load(4).state for path in (runs[name], tmp_path / "run")
    )
    assert same(first, second)
    figures = [json.loads((path / "evaluation.json").read_text()) for path in (runs[name], tmp_path / "run")]
    for record in figures:
        record.pop("training_seconds")
    assert figures[0] == figures[1]


@pytest.mark.parametrize("name", list(RUNS))
def test_a_run_leaves_what_its_trainer_says(name: str, runs: dict[str, Path]) -> None:
    for pattern in RUNS[name][0].artifacts:
        assert list(runs[name].glob(pattern.rstrip("/"))), pattern
    header, *rows = (runs[name] / "metrics.csv").read_text().splitlines()
    assert len(rows) == 4
    assert all(part in header for part in ("seconds", "loss/", "val_unseen"))


@pytest.mark.parametrize("name", list(RUNS))
def test_evaluate_repeats_the_figures(
    name: str, runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = runs[name] / "evaluation.json"
    before = json.loads(file.read_text())
    assert main(["evaluate", str(runs[name])]) == 0
    after = json.loads(file.read_text())
    key = "bleu" if name == "speaker" else "scores"
    assert after[key] == before[key]
    assert "val_unseen" in capsys.readouterr().out


def test_a_command_that_a_trainer_lacks_is_named(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["augment", str(runs["ndh"]), "--out", "x.json"]) == 2
    assert "`ndh`" in capsys.readouterr().err
