"""Checkpoints: tensors in safetensors, the rest in JSON, written so that the last good one always survives.

One checkpoint is two files, ``step_00000600.safetensors`` and ``step_00000600.json``. The JSON holds the size
and the SHA-256 of the tensors, what the checkpoint is of (see `identity`) and a checksum over itself. It is
renamed into place last: a checkpoint exists exactly when its JSON does, and one that changed afterwards in
any place is recognised. Older checkpoints are removed only after a newer one is complete; the best one, which
``best.json`` names, stays beside the newest. Format 1, in which the JSON has neither checksum nor identity,
is still read.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from fq_toolkit.training.atomic import explain, write_atomic
from fq_toolkit.training.errors import CheckpointError, RunError
from fq_toolkit.training.storage.best import Best, Which, read_best, write_best
from fq_toolkit.training.storage.packing import pack, unpack

FORMAT = 2
OLDER = (1,)  # still read

Found = TypeVar("Found")


class Checkpoint(NamedTuple):
    """A loaded checkpoint."""

    step: int
    state: Any


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they lie; created by the first `save`.
        keep: how many of the newest complete checkpoints stay, beside the best; at least 1.
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def steps(self) -> list[int]:
        """Return the steps of all completed checkpoints, oldest first; their content is not checked."""
        names = (
            re.fullmatch(r"step_(\d{8,18})\.json", path.name) for path in self.folder.glob("step_*.json")
        )
        return sorted(int(match[1]) for match in names if match)

    def kept(self) -> str:
        """Return a sentence about what there is to go on from, as it is on the disk now."""
        if not self.folder.parent.is_dir():
            return f"{self.folder.parent} is gone: it was deleted or moved while the run went on."
        steps = self.steps()
        return (
            f"The checkpoint of step {steps[-1]} is intact." if steps else "There is no earlier checkpoint."
        )

    def _paths(self, step: int) -> tuple[Path, Path]:
        stem = self.folder / f"step_{step:08d}"
        return stem.with_suffix(".safetensors"), stem.with_suffix(".json")

    def save(self, step: int, state: Any, about: Mapping[str, Any] | None = None) -> Path:
        """Write a checkpoint, then drop those beyond ``keep``.

        Args:
            step: training steps done.
            state: nest of dicts, lists, tuples, tensors and JSON values.
            about: JSON values that tell what it is of.

        Returns:
            The path of the tensor file.

        Raises:
            RunError: when it cannot be written; the earlier checkpoints are intact and nothing half-written
                is left.
        """
        from safetensors.torch import save

        # Tensors apart from JSON: safetensors runs no code when it is read, which a pickle does.
        tensors, rest = pack(state)
        payload = save(tensors)
        tensor_path, json_path = self._paths(step)
        record = {
            "format": FORMAT,
            "step": step,
            "bytes": len(payload),
            "sha256": hashlib.sha256(payload).hexdigest(),
            "about": dict(about or {}),
            "state": rest,
        }
        record["checksum"] = _checksum(record)
        if json_path.exists():  # replacing two files cannot be atomic, and no trainer saves a step twice
            raise RunError(f"{self.folder} already has a checkpoint of step {step}")
        try:
            # Without parents: in a run folder that somebody removed, a checkpoint alone would be of no use.
            self.folder.mkdir(exist_ok=True)
            # Tensors first: where there is a JSON, its tensors are there and whole.
            write_atomic(tensor_path, payload)
            write_atomic(json_path, json.dumps(record).encode())
        except (OSError, RunError) as error:
            self._remove(step)
            reason = f"{explain(error)}." if isinstance(error, OSError) else str(error)
            raise RunError(f"the checkpoint of step {step} was not saved: {reason} {self.kept()}") from error
        self._prune()
        return tensor_path

    def best(self) -> Best | None:
        """Return which checkpoint was the best so far; None when nothing was measured, or it is gone."""
        best = read_best(self.folder / "best.json")
        return best if best is not None and best.step in self.steps() else None

    def mark_best(self, best: Best) -> None:
        """Name the best checkpoint, which must exist, and drop the one that was the best before.

        Raises:
            RunError: when that cannot be written.
        """
        write_best(self.folder / "best.json", best)
        self._prune()

    def _prune(self) -> None:
        """Remove all but the best and the newest ``keep``, and what a kill left of a file in the making."""
        for pattern in (".step_*.tmp", ".best*.tmp"):
            for path in self.folder.glob(pattern):
                with suppress(OSError):
                    path.unlink()
        best = self.best()
        for step in self.steps()[: -max(1, self.keep)]:
            if best is None or step != best.step:
                self._remove(step)

    def _remove(self, step: int) -> None:
        """Remove what there is of a checkpoint, JSON first: without it there is none."""
        for path in reversed(self._paths(step)):
            with suppress(OSError):
                path.unlink()

    def load(self, which: Which = "last") -> Checkpoint:
        """Read and verify one checkpoint.

        Args:
            which: ``"best"``, ``"last"`` or a step.

        Raises:
            CheckpointError: when there is none, or it is damaged; the message names an older one if there is.
        """
        return self._with_hint(which, self._read)

    def about(self, which: Which = "last") -> tuple[int, dict[str, Any] | None]:
        """Read what a checkpoint says that it is of, without its tensors.

        Args:
            which: ``"best"``, ``"last"`` or a step.

        Returns:
            Its step, and what `save` was told; None for a checkpoint of format 1.

        Raises:
            CheckpointError: as `load` does.
        """
        return self._with_hint(which, lambda step: (step, self._record(step)[1]))

    def _with_hint(self, which: Which, read: Callable[[int], Found]) -> Found:
        """Read of a chosen checkpoint; name an older one when it is damaged."""
        steps = self.steps()
        if not steps:
            raise CheckpointError(
                f"no checkpoint in {self.folder}; the run was stopped before its first one. "
                f"Go on with it: --resume {self.folder.parent}"
            )
        if which == "best":
            best = self.best()
            if best is None:
                raise CheckpointError(
                    f"{self.folder} does not say which checkpoint is the best: the run was not measured yet, "
                    f"or an older version wrote it. Choose last or one of the steps {steps}"
                )
            step = best.step
        else:
            step = steps[-1] if which == "last" else which
        if step not in steps:
            raise CheckpointError(f"no checkpoint of step {step} in {self.folder}; there are {steps}")
        try:
            return read(step)
        except CheckpointError as error:
            older = [s for s in steps if s < step]
            stem = self._paths(step)[0].stem
            hint = (
                f"Remove {stem}.safetensors and .json from {self.folder} to go on from step {older[-1]}."
                if older
                else "There is no older checkpoint: the run has to start again."
            )
            raise CheckpointError(f"{error} {hint}") from error

    def _record(self, step: int) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Return the JSON of a checkpoint, verified, and what it says that the checkpoint is of."""
        path = self._paths(step)[1]
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            version, *_ = (record[key] for key in ("format", "bytes", "sha256", "state"))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{path} is damaged ({type(error).__name__}: {error}).") from error
        if type(version) is not int or version not in (FORMAT, *OLDER):
            raise CheckpointError(f"{path} has format {version!r}; this version reads format {FORMAT}.")
        return record, self._verified(record, step, path)

    def _read(self, step: int) -> Checkpoint:
        from safetensors import SafetensorError
        from safetensors.torch import load

        tensor_path, json_path = self._paths(step)
        record, _ = self._record(step)
        try:
            payload = tensor_path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{tensor_path} cannot be read ({explain(error)}).") from error
        if len(payload) != record["bytes"]:
            raise CheckpointError(
                f"{tensor_path} is damaged: {len(payload)} bytes instead of {record['bytes']}."
            )
        # Of what was read, not of the file once more: it could change in between.
        if hashlib.sha256(payload).hexdigest() != record["sha256"]:
            raise CheckpointError(f"{tensor_path} is damaged: its checksum is not the one it was saved with.")
        try:
            return Checkpoint(step, unpack(load(payload), record["state"]))
        except SafetensorError as error:
            raise CheckpointError(f"{tensor_path} is damaged ({error}).") from error
        except (ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{json_path} is damaged ({type(error).__name__}: {error}).") from error

    def _verified(self, record: dict[str, Any], step: int, path: Path) -> dict[str, Any] | None:
        """Return what a record says that it is of; None for an old one, which says nothing.

        Raises:
            CheckpointError: when the record was changed, or belongs to another step.
        """
        if record.get("step") != step:
            raise CheckpointError(
                f"{path} is damaged: it is of step {record.get('step')!r}, not of the one in its name."
            )
        if record["format"] in OLDER:
            if {"checksum", "about"} & set(record):
                raise CheckpointError(
                    f"{path} is damaged: it has a checksum, which its format does not know."
                )
            return None
        try:
            same = _checksum({key: value for key, value in record.items() if key != "checksum"})
        except (ValueError, RecursionError):
            same = ""
        about = record.get("about")
        if same != record.get("checksum") or not isinstance(about, dict):
            raise CheckpointError(f"{path} is damaged: its checksum is not the one it was saved with.")
        return about


def _checksum(record: Mapping[str, Any]) -> str:
    """Return the checksum of JSON values, which survive a file bit by bit; spaces do not count."""
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()
