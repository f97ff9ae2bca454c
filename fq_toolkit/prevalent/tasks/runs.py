"""Runs of the trainers of R2R, NDH and HANNA, read back from their folder."""

from pathlib import Path
from typing import Any, NamedTuple

from fq_toolkit.prevalent.tasks.navigator import NavigatorTraining
from fq_toolkit.training.config import load_config
from fq_toolkit.training.errors import MISFITS, CheckpointError
from fq_toolkit.training.session import Trainer, make_accelerator
from fq_toolkit.training.storage.run_folder import RunFolder


class NavigatorRun(NamedTuple):
    """A run read back: its task with the agent at one of its checkpoints."""

    folder: RunFolder
    task: NavigatorTraining
    step: int


def load_navigator(trainer: Trainer[Any], path: Path, *, step: int | None = None) -> NavigatorRun:
    """Read a run folder.

    Args:
        trainer: whose run it is.
        path: the folder.
        step: which checkpoint; the newest by default.

    Raises:
        RunError: when it is no run folder.
        CheckpointError: when the checkpoint is missing, damaged, of another model or of other data.
        ConfigError: when it is a run of another trainer.
        DataError: when what it was trained on is not there any more.
    """
    folder = RunFolder.open(path)
    config = load_config(trainer.config_class, folder.config, trainer=trainer.name)
    at, saved = folder.load_checkpoint(step)
    task: Any = trainer.build(config, make_accelerator(config))
    try:
        task.load_state(saved["task"])
    except CheckpointError:
        raise
    except MISFITS as error:
        raise CheckpointError(f"the checkpoint of step {at} in {path} does not fit: {error}") from error
    task.networks.eval()
    return NavigatorRun(folder, task, at)
