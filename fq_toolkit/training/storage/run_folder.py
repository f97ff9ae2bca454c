"""The folder of one run: its files, and the checks that come before any work."""

import logging
import os
from contextlib import suppress
from pathlib import Path

from fq_toolkit.training.atomic import explain
from fq_toolkit.training.config import changes_in_json, read_json
from fq_toolkit.training.errors import CheckpointError, RunError
from fq_toolkit.training.storage.best import Which
from fq_toolkit.training.storage.checkpoints import Checkpoint, Checkpoints

logger = logging.getLogger("fq_toolkit")

# The longest name below a run folder, with room for the number of a process.
_LONGEST = Path("checkpoints", ".step_00000000.safetensors.4294967295.tmp")


class RunFolder:
    """Names of the files of a run.

    ``config.json``, ``metrics.csv``, ``checkpoints/``, ``samples.png``, ``curves.png``, ``evaluation.json``;
    and ``run.lock`` while it is trained.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.metrics = path / "metrics.csv"
        self.samples = path / "samples.png"
        self.curves = path / "curves.png"
        self.evaluation = path / "evaluation.json"
        self.checkpoint_folder = path / "checkpoints"

    def checkpoints(self, *, keep: int = 2) -> Checkpoints:
        """Return the checkpoints of this run."""
        return Checkpoints(self.checkpoint_folder, keep=keep)

    def load_checkpoint(self, which: Which | None = None) -> Checkpoint:
        """Read a checkpoint to look at it, not to go on from it: options that differ are told in the log.

        Args:
            which: ``"best"``, ``"last"`` or a step; the last by default.

        Raises:
            CheckpointError: when it is missing, damaged or of another trainer.
        """
        checkpoint = self.checkpoints().load("last" if which is None else which)
        _, about = self.checkpoints().about(checkpoint.step)
        state = checkpoint.state if isinstance(checkpoint.state, dict) else {}
        if not isinstance(state.get("task"), dict) or not isinstance(state.get("seconds"), (int, float)):
            raise CheckpointError(
                f"the checkpoint of step {checkpoint.step} in {self.checkpoint_folder} is damaged: "
                "it has no state of a task"
            )
        if about is None:
            return checkpoint
        trainer, options = read_json(self.config)
        if about.get("trainer") != trainer:
            raise CheckpointError(
                f"the checkpoint of step {checkpoint.step} in {self.checkpoint_folder} is of the trainer "
                f"{about.get('trainer')!r}, and config.json is of {trainer!r}"
            )
        for change in changes_in_json(about.get("options"), options):
            logger.warning(
                "%s is not as the checkpoint of step %d was made: %s", self.config, checkpoint.step, change
            )
        return checkpoint

    def check_path(self) -> None:
        """Look whether the system takes names below this folder at all.

        Raises:
            RunError: for a path that is too long or has characters that no path can have, or that may not be
                looked at.
        """
        try:
            os.lstat(self.path / _LONGEST)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (OSError, ValueError) as error:
            reason = explain(error) if isinstance(error, OSError) else str(error)
            shown = str(self.path)
            shown = shown if len(shown) <= 120 else f"{shown[:100]}... ({len(shown)} characters)"
            raise RunError(f"{shown!r} cannot be a run folder: {reason}") from error

    def check_writable(self) -> None:
        """Write and remove a small file.

        Raises:
            RunError: when that fails: better now than at the first checkpoint.
        """
        probe = self.path / f".writable.{os.getpid()}.tmp"
        try:
            try:
                probe.write_bytes(b"x")
            finally:
                with suppress(OSError):
                    probe.unlink()
        except OSError as error:
            raise RunError(f"cannot write into the run folder {self.path}: {explain(error)}") from error

    def check_free(self) -> None:
        """Look whether the folder is free for a new run, and can be made.

        Raises:
            RunError: when it already holds one or what one left, or a part of its path is a file.
        """
        self.check_path()
        above = next(place for place in (self.path, *self.path.parents) if place.exists())
        if not above.is_dir():
            raise RunError(f"cannot create the run folder {self.path}: {above} is a file, not a folder")
        if self.config.exists():
            raise RunError(
                f"{self.path} already holds a run: go on with it (--resume {self.path}) "
                "or choose another --out"
            )
        if steps := self.checkpoints().steps():
            raise RunError(
                f"{self.path} has no config.json and a checkpoint of step {steps[-1]}, which a new run would "
                "come upon: remove it or choose another --out"
            )

    @classmethod
    def create(cls, path: Path) -> "RunFolder":
        """Make a new run folder.

        Raises:
            RunError: when it cannot be made or written, or already holds a run.
        """
        run = cls(path)
        run.check_free()
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot create the run folder {path}: {explain(error)}") from error
        run.check_writable()
        return run

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Return an existing run folder.

        Raises:
            RunError: when there is no run.
        """
        run = cls(path)
        run.check_path()
        if not run.config.is_file():
            what = "has no config.json" if path.is_dir() else "does not exist"
            raise RunError(f"{path} is not a run folder: it {what}. Runs are made by `fq-toolkit train`.")
        return run

    def trainer(self) -> str:
        """Return the name of the trainer that made this run.

        Raises:
            RunError: when its configuration does not name one.
        """
        name, _ = read_json(self.config)
        if not isinstance(name, str):
            raise RunError(
                f"{self.config} does not name its trainer; it was not written by `fq-toolkit train`"
            )
        return name
