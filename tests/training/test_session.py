"""A run from its options to its folder, with a task as small as it gets."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fq_toolkit.training.errors import ConfigError, RunError
from fq_toolkit.training.session import Trainer, dry_run, resumed_config, train
from fq_toolkit.training.storage.measured_data import MeasuredSet
from fq_toolkit.training.storage.run_folder import RunFolder
from fq_toolkit.training.task import LoopResult


@dataclass(frozen=True)
class WalkConfig:
    steps: int = 4
    rate: float = 1.0
    log_every: int = 2
    checkpoint_every: int = 0
    keep_checkpoints: int = 1
    evaluate_every: int = 0
    device: str = "cpu"
    precision: str = "no"


class Walk:
    """A random walk."""

    last_evaluation: Any = None
    selection = None

    def __init__(self, config: WalkConfig, accelerator: Any) -> None:
        if config.rate < 0:
            raise ConfigError("the rate is negative")
        torch.manual_seed(0)
        self.place, self.rate = torch.zeros(3), config.rate

    def step(self, step: int) -> dict[str, Tensor]:
        self.place += self.rate * torch.randn(3)
        return {"loss/x": self.place.sum()}

    def gauges(self) -> dict[str, float]:
        return {}

    def evaluate(self) -> dict[str, float]:
        self.last_evaluation = f"at {self.place.tolist()}"
        return {"fid/x": float(self.place.norm())}

    def is_finite(self) -> bool:
        return True

    def state(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.place.copy_(state["place"])

    def summary(self) -> str:
        return "a walk"

    def columns(self) -> list[str]:
        return ["seconds", "loss/x", "fid/x"]

    def measured_on(self) -> dict[str, MeasuredSet]:
        return {}

    def prepare_evaluation(self) -> None:
        pass

    def finish(self, run: RunFolder, result: LoopResult, *, complete: bool) -> None:
        run.evaluation.write_text(str(complete))


WALK = Trainer("walk", WalkConfig, Walk, lambda config: f"walk-{config.rate}")


def test_a_complete_run_and_one_in_two_parts_end_alike(tmp_path: Path) -> None:
    whole = train(WALK, WalkConfig(), out=tmp_path / "whole")
    parts = train(WALK, WalkConfig(), out=tmp_path / "parts", stop_after=2)
    assert parts.evaluation is None
    parts = train(WALK, resume=tmp_path / "parts")
    assert whole.evaluation == parts.evaluation
    assert {path.name for path in (tmp_path / "whole").iterdir()} == {
        "config.json", "metrics.csv", "curves.png", "checkpoints", "evaluation.json"
    }  # fmt: skip


def test_what_cannot_be_built_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the rate is negative"):
        train(WALK, WalkConfig(rate=-1.0), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_measured_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Walk) -> None:
        raise ConfigError("no such ruler")

    monkeypatch.setattr(Walk, "prepare_evaluation", refuse)
    with pytest.raises(ConfigError, match="no such ruler"):
        train(WALK, WalkConfig(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_taken_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    run = train(WALK, WalkConfig(), out=tmp_path / "run").run
    before = (run / "config.json").read_text()
    with pytest.raises(RunError, match="already holds a run: go on with it"):
        train(WALK, WalkConfig(rate=-1.0), out=run)  # could not be built either
    assert (run / "config.json").read_text() == before


def test_what_is_in_the_way_of_a_folder_is_told_before_anything_is_built(tmp_path: Path) -> None:
    cannot_be_built = WalkConfig(rate=-1.0)
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below" / "run"):
        with pytest.raises(RunError, match="file is a file"):
            train(WALK, cannot_be_built, out=out)
    run = train(WALK, WalkConfig(), out=tmp_path / "run").run
    (run / "config.json").unlink()
    with pytest.raises(RunError, match=r"has no config\.json and a checkpoint of step 4"):
        train(WALK, cannot_be_built, out=run)


def test_a_run_that_stops_before_its_first_row_is_saved(tmp_path: Path) -> None:
    result = train(WALK, WalkConfig(log_every=3), out=tmp_path / "run", stop_after=1)
    assert result.step == 1
    assert RunFolder(result.run).checkpoints().steps() == [1]
    assert not RunFolder(result.run).curves.exists()
    assert train(WALK, resume=result.run).step == 4


def test_a_resumed_run_keeps_its_options_and_its_folder(tmp_path: Path) -> None:
    run = train(WALK, WalkConfig(), out=tmp_path / "run").run
    with pytest.raises(ConfigError, match=r"rate: 1\.0 -> 2\.0"):
        resumed_config(WALK, WalkConfig(rate=2.0), run)
    assert resumed_config(WALK, WalkConfig(steps=9), run).steps == 9
    with pytest.raises(ConfigError, match="either out or resume"):
        train(WALK, resume=run, out=tmp_path / "other")
    with pytest.raises(RunError, match="already holds a run"):
        train(WALK, WalkConfig(), out=run)


def test_dry_run_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = dry_run(WALK, replace(WalkConfig(), rate=3.0))
    assert "a walk" in text
    assert "runs/walk-3.0-TIME" in text
    assert list(tmp_path.iterdir()) == []
