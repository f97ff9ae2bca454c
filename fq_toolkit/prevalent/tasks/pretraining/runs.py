"""Runs of the pretraining, read back from their folder."""

from pathlib import Path
from typing import NamedTuple

from fq_toolkit.prevalent.tasks.pretraining.benefit import measure_benefit
from fq_toolkit.prevalent.tasks.pretraining.config import TRAINER, PretrainingConfig
from fq_toolkit.prevalent.tasks.pretraining.data import PretrainingData
from fq_toolkit.prevalent.tasks.pretraining.evaluation import PretrainingResult, score_steps, write_evaluation
from fq_toolkit.prevalent.tasks.pretraining.network import PretrainingNetwork
from fq_toolkit.prevalent.tasks.pretraining.steps import WordMasker
from fq_toolkit.prevalent.tasks.pretraining.training import build_pretraining, save_model
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.runs import open_saved
from fq_toolkit.training.session import make_accelerator
from fq_toolkit.training.storage.best import Which
from fq_toolkit.training.storage.measured_data import check_measured
from fq_toolkit.training.storage.run_folder import RunFolder


class PretrainedRun(NamedTuple):
    """A run read back: its network at one of its checkpoints, and what it was trained on."""

    folder: RunFolder
    config: PretrainingConfig
    data: PretrainingData
    network: PretrainingNetwork
    step: int
    seconds: float
    checkpoint: Which


def load_run(path: Path, *, checkpoint: Which = "last") -> PretrainedRun:
    """Read a run folder.

    Args:
        path: the folder.
        checkpoint: ``"best"``, ``"last"`` or a step.

    Raises:
        RunError: as `fq_toolkit.prevalent.tasks.runs.load_navigator`.
    """
    saved = open_saved(PretrainingConfig, TRAINER, path, checkpoint=checkpoint)
    config = saved.config
    task = build_pretraining(config, make_accelerator(config))
    with saved.fitting():
        task.load_state(saved.state)
    return PretrainedRun(
        saved.folder, config, task.data, task.network.eval(), saved.step, saved.seconds, checkpoint
    )


def evaluate_run(
    run: PretrainedRun, *, limit: int | None = None, fine_tune: bool = False
) -> PretrainingResult:
    """Measure a run again; write ``evaluation.json`` and ``model/``.

    Args:
        run: the run.
        limit: time steps of held-out paths; by default as many as the run's options say.
        fine_tune: also fine-tune an agent and one from scratch, in MiniWorld.

    Raises:
        ConfigError: for a limit below 1, or fine-tuning elsewhere than in MiniWorld.
        CheckpointError: when the held-out paths are not those that the run was measured on.
    """
    if fine_tune and not run.config.generated:
        raise ConfigError(
            f"the run was trained on {run.config.source}: fine-tune it with `fq-toolkit train r2r "
            "--pretrained`"
        )
    if limit is not None and limit < 1:
        raise ConfigError(f"steps to look at: {limit}; expected at least 1")
    # Before any work: figures of other held-out paths would not continue the curve of the run.
    check_measured(run.folder.checkpoints(), run.step, run.data.measured_on())
    masker = WordMasker(run.data.vocabulary, share=run.config.mask_share)
    scores = score_steps(run.network, run.data.validation, masker, limit=limit or run.config.eval_steps)
    save_model(run.folder, run.network.model, run.data)
    benefit = None
    if fine_tune:
        benefit = measure_benefit(run.config, run.network.model, run.data.vocabulary)
    result = PretrainingResult(scores, benefit)
    write_evaluation(
        run.folder,
        run.config,
        run.data,
        result,
        step=run.step,
        seconds=run.seconds,
        checkpoint=run.checkpoint,
    )
    return result
