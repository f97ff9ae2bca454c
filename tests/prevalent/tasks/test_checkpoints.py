"""The best checkpoint: chosen by a named figure, kept beside the newest, and asked for by commands."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from fq_toolkit.cli import main
from fq_toolkit.prevalent.tasks.hanna.training import HANNA_TRAINER
from fq_toolkit.prevalent.tasks.navigator import NavigatorTask
from fq_toolkit.prevalent.tasks.ndh.training import NDH_TRAINER
from fq_toolkit.prevalent.tasks.pretraining.training import PRETRAINER, PretrainingTask
from fq_toolkit.prevalent.tasks.r2r.training import R2R_TRAINER
from fq_toolkit.prevalent.tasks.speaker.training import SPEAKER_TRAINER
from fq_toolkit.training.session import make_accelerator, train
from fq_toolkit.training.storage.run_folder import RunFolder
from tests.prevalent.tasks.pretraining.small import SMALL as PRETRAINING
from tests.prevalent.tasks.r2r.small import TINY
from tests.prevalent.tasks.small_runs import RUNS

NDH, HANNA, SPEAKER = (RUNS[name][1] for name in ("ndh", "hanna", "speaker"))
CHOICES: list[tuple[Any, Any, str, bool]] = [
    (R2R_TRAINER, TINY, "SPL/val_unseen", True),
    (R2R_TRAINER, dataclasses.replace(TINY, select_by="SR"), "SR/val_unseen", True),
    (NDH_TRAINER, NDH, "GP/val_unseen", True),
    (HANNA_TRAINER, HANNA, "SR/val_unseen", True),
    (SPEAKER_TRAINER, SPEAKER, "BLEU/val_unseen", True),
    (PRETRAINER, PRETRAINING, "held-out loss/total", False),
    (PRETRAINER, dataclasses.replace(PRETRAINING, select_by="accuracy"), "held-out accuracy/action", True),
]


@pytest.mark.parametrize(("trainer", "config", "column", "highest"), CHOICES)
def test_every_trainer_chooses_by_a_figure_that_it_measures(
    trainer: Any, config: Any, column: str, highest: bool
) -> None:
    task = trainer.build(config, make_accelerator(config))
    assert task.selection == (column, highest)
    figures = task.evaluate()
    assert column in figures
    assert set(figures) <= set(task.columns())


def test_the_loss_that_chooses_is_the_one_that_is_trained_on() -> None:
    weights = (0.25, 2.0)
    config = dataclasses.replace(PRETRAINING, loss_weights=weights)
    figures = PRETRAINER.build(config, make_accelerator(config)).evaluate()
    parts = [figures[f"held-out loss/{part}"] for part in ("words", "action")]
    assert figures["held-out loss/total"] == pytest.approx(weights[0] * parts[0] + weights[1] * parts[1])


@pytest.mark.parametrize(
    ("trainer", "config", "task"),
    [(NDH_TRAINER, NDH, NavigatorTask), (PRETRAINER, PRETRAINING, PretrainingTask)],
)
def test_commands_read_the_checkpoint_that_is_asked_for(
    trainer: Any,
    config: Any,
    task: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The second evaluation is made the better one."""
    measure, seen = task.evaluate, []
    options = {"evaluate_every": 1, "steps": 4, "checkpoint_every": 4, "keep_checkpoints": 1}

    def evaluate(self: Any) -> dict[str, float]:
        seen.append(len(seen))
        column, highest = self.selection
        return {**measure(self), column: float((1 if highest else -1) * (len(seen) == 2))}

    with monkeypatch.context() as patch:
        patch.setattr(task, "evaluate", evaluate)
        run = train(trainer, dataclasses.replace(config, **options), out=tmp_path / "run").run
    assert RunFolder.open(run).checkpoints().steps() == [2, 4]
    capsys.readouterr()
    for checkpoint, step in (("best", 2), ("last", 4), ("2", 2)):
        assert main(["evaluate", str(run), "--checkpoint", checkpoint]) == 0
        assert f"step {step}" in capsys.readouterr().out
    if trainer is NDH_TRAINER:
        assert main(["navigate", str(run), "--checkpoint", "best"]) == 0
        assert main(["navigate", str(run), "--checkpoint", "3"]) == 1
        assert "no checkpoint of step 3" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--checkpoint", "newest"]) == 2
    assert "expected best, last or the step" in capsys.readouterr().err


def test_another_figure_may_choose_after_a_resume(tmp_path: Path) -> None:
    run = train(R2R_TRAINER, TINY, out=tmp_path / "run", stop_after=2).run
    train(R2R_TRAINER, dataclasses.replace(TINY, select_by="SR"), resume=run)
    best = RunFolder.open(run).checkpoints().best()
    assert best is not None
    assert best.column == "SR/val_unseen"
