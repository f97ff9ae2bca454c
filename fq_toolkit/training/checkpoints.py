"""Checkpoints: tensors in safetensors, the rest in JSON, written so that the last good one always survives.

One checkpoint is two files, ``step_00000600.safetensors`` and ``step_00000600.json``. The JSON holds the size
and the SHA-256 of the tensors and is renamed into place last: a checkpoint exists exactly when its JSON does,
and one whose tensors were cut short afterwards is recognised. Older checkpoints are removed only after a
newer one is complete.
"""

import hashlib
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from fq_toolkit.training.atomic import write_atomic
from fq_toolkit.training.errors import CheckpointError, RunError
from fq_toolkit.training.packing import pack, unpack

FORMAT = 1


class Checkpoint(NamedTuple):
    """A loaded checkpoint."""

    step: int
    state: Any


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they lie; created by the first :meth:`save`.
        keep: how many complete checkpoints stay; at least 1.
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def steps(self) -> list[int]:
        """Return the steps of all completed checkpoints, oldest first; their content is not checked."""
        found = (re.fullmatch(r"step_(\d+)\.json", path.name) for path in self.folder.glob("step_*.json"))
        return sorted(int(match[1]) for match in found if match)

    def _paths(self, step: int) -> tuple[Path, Path]:
        stem = self.folder / f"step_{step:08d}"
        return stem.with_suffix(".safetensors"), stem.with_suffix(".json")

    def save(self, step: int, state: Any) -> Path:
        """Write a checkpoint, then drop those beyond ``keep``.

        Args:
            step: training steps done.
            state: nest of dicts, lists, tuples, tensors and JSON values.

        Returns:
            The path of the tensor file.

        Raises:
            RunError: when it cannot be written; the earlier checkpoints are intact and nothing half-written
                is left.
        """
        from safetensors.torch import save

        tensors, rest = pack(state)
        payload = save(tensors)
        tensor_path, json_path = self._paths(step)
        record = {
            "format": FORMAT,
            "step": step,
            "bytes": len(payload),
            "sha256": hashlib.sha256(payload).hexdigest(),
            "state": rest,
        }
        if json_path.exists():  # replacing two files cannot be atomic, and no trainer saves a step twice
            raise RunError(f"{self.folder} already has a checkpoint of step {step}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(tensor_path, payload)
            write_atomic(json_path, json.dumps(record).encode())
        except (OSError, RunError) as error:
            self._remove(step)
            kept = self.steps()
            safe = (
                f"The checkpoint of step {kept[-1]} is intact." if kept else "There is no earlier checkpoint."
            )
            raise RunError(f"the checkpoint of step {step} was not saved: {error} {safe}") from error
        self._prune()
        return tensor_path

    def _prune(self) -> None:
        """Remove all but the newest ``keep`` checkpoints, and what a kill left of a file in the making."""
        for path in self.folder.glob(".step_*.tmp"):
            with suppress(OSError):
                path.unlink()
        for step in self.steps()[: -max(1, self.keep)]:
            self._remove(step)

    def _remove(self, step: int) -> None:
        """Remove what there is of a checkpoint, JSON first: without it there is none."""
        for path in reversed(self._paths(step)):
            with suppress(OSError):
                path.unlink()

    def load(self, step: int | None = None) -> Checkpoint:
        """Read and verify one checkpoint.

        Args:
            step: which; the newest by default.

        Raises:
            CheckpointError: when there is none, or it is damaged; the message names an older one if there is.
        """
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"no checkpoint in {self.folder}; the run was stopped before its first one")
        if step is None:
            step = steps[-1]
        if step not in steps:
            raise CheckpointError(f"no checkpoint of step {step} in {self.folder}; there are {steps}")
        try:
            return Checkpoint(step, self._read(step))
        except CheckpointError as error:
            older = [s for s in steps if s < step]
            stem = self._paths(step)[0].stem
            hint = (
                f"Remove {stem}.safetensors and .json from {self.folder} to go on from step {older[-1]}."
                if older
                else "There is no older checkpoint: the run has to start again."
            )
            raise CheckpointError(f"{error} {hint}") from error

    def _read(self, step: int) -> Any:
        from safetensors import SafetensorError
        from safetensors.torch import load

        tensor_path, json_path = self._paths(step)
        try:
            record = json.loads(json_path.read_text(encoding="utf-8"))
            version, size, digest, rest = (record[key] for key in ("format", "bytes", "sha256", "state"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{json_path} is damaged ({error}).") from error
        if version != FORMAT:
            raise CheckpointError(f"{json_path} has format {version}; this version reads format {FORMAT}.")
        try:
            payload = tensor_path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{tensor_path} cannot be read ({error.strerror}).") from error
        if len(payload) != size:
            raise CheckpointError(f"{tensor_path} is damaged: {len(payload)} bytes instead of {size}.")
        if hashlib.sha256(payload).hexdigest() != digest:
            raise CheckpointError(f"{tensor_path} is damaged: its checksum is not the one it was saved with.")
        try:
            return unpack(load(payload), rest)
        except SafetensorError as error:
            raise CheckpointError(f"{tensor_path} is damaged ({error}).") from error
