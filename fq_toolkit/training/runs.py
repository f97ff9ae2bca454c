"""A run read back from its folder, by every command that looks at one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from fq_toolkit.training.config import load_config
from fq_toolkit.training.errors import MISFITS, CheckpointError, ConfigError, RunError
from fq_toolkit.training.storage.best import Which
from fq_toolkit.training.storage.run_folder import RunFolder

Config = TypeVar("Config")


class SavedRun(NamedTuple, Generic[Config]):
    """A run folder with its options and one of its checkpoints.

    folder: its files.
    config: all options.
    step: of the checkpoint.
    seconds: of training up to it.
    state: of the task, as `TrainingTask.state` returned it.
    """

    folder: RunFolder
    config: Config
    step: int
    seconds: float
    state: dict[str, Any]

    @contextmanager
    def fitting(self, hint: str = "") -> Iterator[None]:
        """Turn what state of another shape raises, within, into an error about the checkpoint.

        Args:
            hint: what to look at, after the reason.

        Raises:
            CheckpointError: when the state does not fit what it is loaded into.
        """
        try:
            yield
        except (RunError, ConfigError):  # these say already what is wrong
            raise
        except MISFITS as error:
            raise CheckpointError(
                f"the checkpoint of step {self.step} in {self.folder.path} does not fit: {error}{hint}"
            ) from error


def open_saved(
    config_class: type[Config], trainer: str, path: Path, *, checkpoint: Which | None = None
) -> SavedRun[Config]:
    """Read a run folder: options and a checkpoint, nothing built.

    Args:
        config_class: of the trainer.
        trainer: its name.
        path: the folder.
        checkpoint: ``"best"``, ``"last"`` or a step; the last by default.

    Raises:
        RunError: when it is no run folder.
        ConfigError: when it is a run of another trainer, or its options cannot be read.
        CheckpointError: when the checkpoint is missing or damaged.
    """
    folder = RunFolder.open(path)
    config = load_config(config_class, folder.config, trainer=trainer)
    step, saved = folder.load_checkpoint(checkpoint)
    return SavedRun(folder, config, step, float(saved["seconds"]), saved["task"])
