"""What a run is measured on: figures of one curve can be compared when all are of the same data.

Every checkpoint says it, beside its options; resuming and evaluating refuse other data, and
``evaluation.json`` names them.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from fq_toolkit.training.errors import CheckpointError
from fq_toolkit.training.storage.checkpoints import Checkpoints
from fq_toolkit.training.storage.run_folder import RunFolder

logger = logging.getLogger("fq_toolkit")

KEY = "measured_on"
"""Where checkpoints and ``evaluation.json`` keep it."""
_SHOWN = 12  # digits of a digest that people see


class MeasuredSet(NamedTuple):
    """Data that a run is measured on.

    file: the file, folder or name that they come from.
    digest: of their content as it is read, and of what else decides the figures.
    items: how many there are.
    """

    file: str
    digest: str
    items: int

    def record(self) -> dict[str, Any]:
        """Return what ``evaluation.json`` says."""
        return {"file": self.file, "hash": self.digest[:_SHOWN], "items": self.items}


def digest_of(rows: Iterable[Any]) -> str:
    """Return a digest of texts, or of whatever else JSON can hold."""
    return hashlib.sha256(json.dumps(list(rows)).encode()).hexdigest()


def set_records(sets: Mapping[str, MeasuredSet]) -> dict[str, dict[str, Any]]:
    """Return the entry of ``evaluation.json``: set -> file, hash and items."""
    return {name: one.record() for name, one in sets.items()}


def measured_line(run: RunFolder) -> str:
    """Return a line on what the figures of ``evaluation.json`` were measured on; empty when it does not say.

    Args:
        run: a run that was measured just now.
    """
    try:
        record = json.loads(run.evaluation.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    sets = record.get(KEY) if isinstance(record, dict) else None
    if not sets:
        return ""
    parts = [f"{one['file']} ({one['items']:,} items, hash {one['hash']})" for one in sets.values()]
    if len(parts) > 1:
        parts = [f"{name}: {part}" for name, part in zip(sets, parts, strict=True)]
    return f"measured on {'; '.join(parts)}\n"


def check_measured(checkpoints: Checkpoints, step: int, now: Mapping[str, MeasuredSet]) -> None:
    """Compare what there is to measure on with what a checkpoint says that its run was measured on.

    A checkpoint of an older version does not say it: that is told in the log.

    Args:
        checkpoints: of the run.
        step: which one.
        now: the sets that are there.

    Raises:
        CheckpointError: naming the file that changed, with hashes and numbers of items.
    """
    _, about = checkpoints.about(step)
    saved = None if about is None else about.get(KEY)
    if not isinstance(saved, dict):
        files = ", ".join(one.file for one in now.values()) or "nothing"
        logger.warning(
            "the checkpoint of step %d was written by an older version, which did not say what the run is "
            "measured on: whether that is still the same (now %s) cannot be checked",
            step,
            files,
        )
        return
    for name in dict.fromkeys([*now, *saved]):
        before, after = _read(saved.get(name)), now.get(name)
        if (before and before.digest) == (after and after.digest):
            continue
        file = after.file if after else before.file if before else name
        raise CheckpointError(
            f"{file}, or what belongs to its items, is not what the run was measured on so far ({name}: "
            f"{_told(before)} at step {step}, {_told(after)} now). Figures of both would not be comparable: "
            "bring back what was there, or start a new run."
        )


def check_newest(run: RunFolder, now: Mapping[str, MeasuredSet]) -> None:
    """Do as `check_measured` with the newest checkpoint, if there is one.

    Raises:
        CheckpointError: the same, or for a damaged checkpoint.
    """
    checkpoints = run.checkpoints()
    if steps := checkpoints.steps():
        check_measured(checkpoints, steps[-1], now)
    else:
        logger.warning(
            "%s has no checkpoint: whether it is measured on what it was before cannot be checked", run.path
        )


def _read(saved: Any) -> MeasuredSet | None:
    """Return a set as a checkpoint keeps it; None where there was none."""
    if saved is None:
        return None
    try:
        return MeasuredSet(str(saved["file"]), str(saved["digest"]), int(saved["items"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the checkpoint is damaged: its {KEY} cannot be read ({error!r})") from error


def _told(one: MeasuredSet | None) -> str:
    return "nothing" if one is None else f"{one.items:,} items with hash {one.digest[:_SHOWN]}"
