"""The folder of one run: its files, and the checks that come before any work."""

import os
from contextlib import suppress
from pathlib import Path

from fq_toolkit.training.atomic import explain
from fq_toolkit.training.checkpoints import Checkpoints
from fq_toolkit.training.config import read_json
from fq_toolkit.training.errors import RunError


class RunFolder:
    """Names of the files of a run.

    ``config.json``, ``metrics.csv``, ``checkpoints/``, ``samples.png``, ``curves.png``, ``evaluation.json``.
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
        if name is None:
            raise RunError(
                f"{self.config} does not name its trainer; it was not written by `fq-toolkit train`"
            )
        return name
