"""Runs of the pretraining, read back from their folder."""

from pathlib import Path
from typing import NamedTuple

from fq_toolkit.prevalent.tasks.pretraining.benefit import measure_benefit
from fq_toolkit.prevalent.tasks.pretraining.config import TRAINER, PretrainingConfig
from fq_toolkit.prevalent.tasks.pretraining.data import PretrainingData, load_pretraining_data
from fq_toolkit.prevalent.tasks.pretraining.masking import WordMasker
from fq_toolkit.prevalent.tasks.pretraining.training import (
    Pretraining,
    PretrainingNetwork,
    PretrainingResult,
    save_model,
    score_steps,
    write_evaluation,
)
from fq_toolkit.training.config import load_config
from fq_toolkit.training.errors import MISFITS, CheckpointError, ConfigError
from fq_toolkit.training.session import make_accelerator
from fq_toolkit.training.storage.measured_data import check_measured
from fq_toolkit.training.storage.run_folder import RunFolder
from fq_toolkit.training.task import check_data


class PretrainedRun(NamedTuple):
    """A run read back: its network at one of its checkpoints, and what it was trained on."""

    folder: RunFolder
    config: PretrainingConfig
    data: PretrainingData
    network: PretrainingNetwork
    step: int
    seconds: float


def load_run(path: Path, *, step: int | None = None) -> PretrainedRun:
    """Read a run folder.

    Args:
        path: the folder.
        step: which checkpoint; the newest by default.

    Raises:
        RunError: when it is no run folder.
        CheckpointError: when the checkpoint is missing, damaged, of another model or of other data.
        ConfigError: when it is a run of another trainer.
        DataError: when what it was trained on is not there any more.
    """
    folder = RunFolder.open(path)
    config = load_config(PretrainingConfig, folder.config, trainer=TRAINER)
    checkpoint = folder.load_checkpoint(step)
    data = load_pretraining_data(config)
    check_data(
        checkpoint.state["task"], data.fingerprint(), what=Pretraining.trained_on, source=config.source
    )
    network = PretrainingNetwork(config, vocab_size=len(data.vocabulary), vision_size=data.train.vision_size)
    try:
        network.load_state_dict(checkpoint.state["task"]["network"])
    except MISFITS as error:
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.step} in {path} does not fit: {error}"
        ) from error
    network.to(make_accelerator(config).device).eval()
    return PretrainedRun(folder, config, data, network, checkpoint.step, checkpoint.state["seconds"])


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
    check_measured(run.folder.checkpoints(), run.step, run.data.measured_on())
    masker = WordMasker(run.data.vocabulary, share=run.config.mask_share)
    scores = score_steps(run.network, run.data.validation, masker, limit=limit or run.config.eval_steps)
    save_model(run.folder, run.network.model, run.data)
    benefit = None
    if fine_tune:
        benefit = measure_benefit(run.config, run.network.model, run.data.vocabulary)
    result = PretrainingResult(scores, benefit)
    write_evaluation(run.folder, run.config, run.data, result, step=run.step, seconds=run.seconds)
    return result
