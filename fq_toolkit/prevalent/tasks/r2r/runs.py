"""Runs of the R2R trainer, read back from their folder."""

from pathlib import Path
from typing import NamedTuple, cast

from fq_toolkit.prevalent.tasks.r2r.config import R2RConfig
from fq_toolkit.prevalent.tasks.r2r.evaluation import Decoding, R2REvaluation, follow, score_split
from fq_toolkit.prevalent.tasks.r2r.training import R2R_TRAINER, R2RTraining
from fq_toolkit.prevalent.tasks.runs import load_navigator
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.storage.measured_data import check_measured
from fq_toolkit.training.storage.run_folder import RunFolder


class R2RRun(NamedTuple):
    """A run read back: its task with the agent at one of its checkpoints."""

    folder: RunFolder
    config: R2RConfig
    task: R2RTraining
    step: int


def load_run(path: Path, *, step: int | None = None) -> R2RRun:
    """Read a run folder.

    Args:
        path: the folder.
        step: which checkpoint; the newest by default.

    Raises:
        RunError: when it is no run folder.
        CheckpointError: when the checkpoint is missing, damaged or of another model.
        ConfigError: when it is a run of another trainer.
        DataError: when what it was trained on is not there any more.
    """
    found = load_navigator(R2R_TRAINER, path, step=step)
    task = cast(R2RTraining, found.task)  # what this trainer builds
    return R2RRun(found.folder, task.config, task, found.step)


def evaluate_run(
    run: R2RRun, *, decoding: Decoding = "greedy", beam_width: int = 5, seed: int = 0
) -> R2REvaluation:
    """Measure a run again; write ``predictions-SPLIT.json`` and ``evaluation.json``.

    Args:
        run: the run.
        decoding: ``"greedy"``, ``"sample"`` or ``"beam"``.
        beam_width: of beam search.
        seed: of sampling.

    Raises:
        ConfigError: for unknown decoding or a width below 1.
        CheckpointError: when the validation splits are not those that the run was measured on.
    """
    if beam_width < 1:
        raise ConfigError(f"beam_width is {beam_width}; expected at least 1")
    task, scores = run.task, {}
    check_measured(run.folder.checkpoints(), run.step, task.measured_on())
    for name, split in task.validation.items():
        task.predictions[name] = follow(
            task.agent,
            split,
            decoding=decoding,
            beam_width=beam_width,
            max_steps=run.config.max_steps,
            seed=seed,
        )
        scores[name] = score_split(split, task.predictions[name])
    counts = {name: len(split.items) for name, split in task.validation.items()}
    task.last_evaluation = R2REvaluation(scores, counts, task.train.synthesised, decoding)
    task.write_results(run.folder, step=run.step, decoding=decoding)
    return task.last_evaluation
