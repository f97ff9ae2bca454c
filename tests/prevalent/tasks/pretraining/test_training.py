"""The pretraining: updates, resume, and what a run leaves."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fq_toolkit import cli
from fq_toolkit.prevalent import (
    PrevalentModel,
    Vocabulary,
)
from fq_toolkit.prevalent.tasks.pretraining.config import preset
from fq_toolkit.prevalent.tasks.pretraining.runs import evaluate_run, load_run
from fq_toolkit.prevalent.tasks.pretraining.training import train
from fq_toolkit.training.errors import ConfigError, RunError
from fq_toolkit.training.storage.checkpoints import Checkpoints
from tests.prevalent.tasks.pretraining.small import SMALL, task


def test_the_learning_rate_falls_to_zero_in_a_line() -> None:
    pretraining = task(dataclasses.replace(SMALL, steps=100, warmup=0.1, lr=1e-3))
    rates = [pretraining.learning_rate(step) for step in range(101)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[100] == 0
    assert np.diff(rates[10:]) == pytest.approx(-1e-5)
    assert max(rates) <= 1e-3
    released = dataclasses.replace(preset("released"), steps=100)
    pretraining.config = released
    assert pretraining.learning_rate(0) == released.lr == 5e-5


@pytest.mark.parametrize("label", ["prevalent", "candidate"])
def test_resume_is_bit_exact(tmp_path: Path, label: str) -> None:
    config = dataclasses.replace(SMALL, action_label=label, dropout=0.1)
    whole = train(config, out=tmp_path / "whole")
    train(config, out=tmp_path / "parts", stop_after=4)
    parts = train(resume=tmp_path / "parts")
    states = [
        Checkpoints(tmp_path / name / "checkpoints").load().state["task"] for name in ("whole", "parts")
    ]
    assert states[0]["order"] == states[1]["order"]
    for name, value in states[0]["network"].items():
        assert torch.equal(value, states[1]["network"][name]), name
    assert str(whole.evaluation) == str(parts.evaluation)
    with pytest.raises(ConfigError, match="steps: 6 -> 9"):
        train(dataclasses.replace(config, steps=9), resume=tmp_path / "parts")


def test_a_run_leaves_a_model_that_can_be_read(tmp_path: Path) -> None:
    result = train(SMALL, out=tmp_path / "run")
    model = PrevalentModel.from_pretrained(tmp_path / "run")
    vocabulary = Vocabulary.from_file(tmp_path / "run" / "model" / "vocabulary.json")
    run = load_run(tmp_path / "run")
    assert model.config.vocab_size == len(vocabulary) == len(run.data.vocabulary)
    for name, value in run.network.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    record = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert record["word_accuracy"] == result.evaluation.scores.word_accuracy
    assert record["step"] == 6
    assert record["fine_tuned"] is None
    assert record["versions"]["torch"] == torch.__version__
    assert evaluate_run(run).scores == result.evaluation.scores
    with pytest.raises(ConfigError, match="expected at least 1"):
        evaluate_run(run, limit=0)
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    for column in ("loss/words", "loss/action", "held-out accuracy/words", "held-out accuracy/action"):
        assert column in header
    assert (tmp_path / "run" / "curves.png").stat().st_size > 1000


def test_the_commands_speak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = (
        "--scans 2 --train-items 20 --validation-items 6 --hidden-size 16 --num-heads 2 --steps 2".split()
    )
    options += "--intermediate-size 32 --batch-size 8 --eval-steps 20 --no-fine-tune --device cpu".split()
    assert cli.main(["train", "prevalent", *options, "--dry-run"]) == 0
    assert "Nothing was written" in capsys.readouterr().out
    assert cli.main(["train", "prevalent", *options, "--out", str(tmp_path / "run")]) == 0
    assert "masked words" in capsys.readouterr().out
    assert cli.main(["evaluate", str(tmp_path / "run")]) == 0
    assert "step 2: held-out paths" in capsys.readouterr().out
    assert cli.main(["train", "prevalent", "--data", str(tmp_path), "--connectivity", str(tmp_path)]) == 1
    assert "fq-toolkit: " in capsys.readouterr().err


def test_a_checkpoint_of_another_size_and_a_missing_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run folder"):
        load_run(tmp_path / "absent")
    with pytest.raises(ConfigError, match=r"batch_size: .* rows do not fill a batch"):
        task(dataclasses.replace(SMALL, batch_size=5000))
