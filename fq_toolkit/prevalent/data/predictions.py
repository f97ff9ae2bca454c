"""Prediction files in the official submission formats."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fq_toolkit.prevalent.files import DataError, field, read_records, write_json
from fq_toolkit.prevalent.world.items import NavItem

ID_FIELDS = ("instr_id", "inst_idx", "instruction_id")
TRAJECTORY_FIELDS = ("trajectory", "agent_pose", "path")


def save_predictions(
    path: str | Path, trajectories: Iterable[dict[str, Any]], *, id_field: str = "instr_id"
) -> Path:
    """Write ``[{instr_id, trajectory}, ...]``, the submission format of the R2R and HANNA servers.

    Args:
        path: the file.
        trajectories: as `BatchedNavEnv.trajectories` returns them.
        id_field: ``"inst_idx"`` for NDH, whose ids are numbers.

    Returns:
        The file.

    Raises:
        ValueError: for another ``id_field``, or an id that occurs twice.
        RunError: if the file cannot be written.
    """
    if id_field not in ("instr_id", "inst_idx"):
        raise ValueError(f"id_field must be 'instr_id' or 'inst_idx', got {id_field!r}")
    records, seen = [], set()
    for record in trajectories:
        name = str(record["instr_id"])
        if name in seen:
            raise ValueError(f"instruction {name!r} occurs twice among the trajectories")
        seen.add(name)
        # What else a record holds, such as HANNA's requests, is submitted too.
        rest = {key: value for key, value in record.items() if key != "instr_id"}
        records.append({id_field: int(name) if id_field == "inst_idx" else name, **rest})
    return write_json(Path(path), records)


def load_predictions(path: str | Path, items: Sequence[NavItem]) -> list[dict[str, Any]]:
    """Read predictions and put them into the order of the items.

    Args:
        path: JSON list of ``{instr_id or inst_idx, trajectory}``, or a ``.jsonl`` file with one such object
            per line; both also ``.gz``. A step of a trajectory is ``[viewpoint, heading, elevation]``, or the
            list of viewpoints that one decision passes, all of which count. HANNA's ``agent_pose`` is read as
            a trajectory, and so is ``path``, which may also be a plain list of viewpoints.
        items: the tasks that the file must answer.

    Returns:
        For each item its record, with a list of viewpoints as ``"path"``.

    Raises:
        DataError: naming the file and the ids, for a damaged file, a step of another form, two differing
            trajectories in one record, and duplicate, missing or unknown ids. The official programs ignore
            unknown ids; they mean that the annotations are of another split.
    """
    path = Path(path)
    predictions: dict[str, dict[str, Any]] = {}
    for position, record in enumerate(read_records(path)):
        name, where = _identity(record, path, position)
        if name in predictions:
            raise DataError(f"{where} is a duplicate; expected one trajectory per instruction")
        predictions[name] = {**record, "path": _viewpoints(record, where)}
    # A missing item must not be left out of the mean, nor count as a failure: both are another figure.
    expected = {item.instr_id for item in items}
    missing, unknown = expected - predictions.keys(), predictions.keys() - expected
    for problem, ids in (("missing", missing), ("unknown", unknown)):
        if ids:
            raise DataError(
                f"{path}: {len(ids)} {problem} ids of {len(expected)} expected: {_some(ids)}; are "
                "predictions and annotations of the same split?"
            )
    return [predictions[item.instr_id] for item in items]


def _identity(record: dict[str, Any], path: Path, position: int) -> tuple[str, str]:
    """Return the id of a record, and file and id for messages."""
    # A record may carry the ids of two formats; silently preferring one could score another instruction.
    where = f"{path}: item {position}"
    present = [key for key in ID_FIELDS if key in record] or [ID_FIELDS[0]]
    names = {key: str(field(record, key, (int, str), where)) for key in present}
    if len(set(names.values())) > 1:
        raise DataError(f"{where} has several ids that differ: {names}")
    return names[present[0]], f"{path}: {present[0]} {names[present[0]]!r}"


def _viewpoints(record: dict[str, Any], where: str) -> list[str]:
    """Return the viewpoints of a record, in order."""
    present = [key for key in TRAJECTORY_FIELDS if key in record] or [TRAJECTORY_FIELDS[0]]
    paths = []
    for key in present:
        steps = field(record, key, list, where)
        if not steps:
            raise DataError(f"{where}: the {key} is empty; it must hold the start at least")
        # In a "path" a bare name is a viewpoint; elsewhere it is a step of an unknown form.
        if key == "path" and all(isinstance(step, str) for step in steps):
            paths.append(list(steps))
        else:
            paths.append([v for number, step in enumerate(steps) for v in _step(step, number, where)])
    for key, path in zip(present, paths, strict=True):
        if path != paths[0]:
            raise DataError(f"{where}: {present[0]} and {key} are two different ways: leave one out")
    return paths[0]


def _step(step: Any, number: int, where: str) -> list[str]:
    """Return the viewpoints of one step of a trajectory."""
    if isinstance(step, list) and step:
        # Agents that plan on a map (DUET) list every viewpoint that a decision passes.
        if all(isinstance(part, str) and part for part in step):
            return step
        name, *angles = step
        if isinstance(name, str) and name and len(angles) == 2 and all(map(_is_angle, angles)):
            return [name]
    raise DataError(
        f"{where}: step {number} is {str(step)[:60]}; expected [viewpoint, heading, elevation], or the "
        "viewpoints of one decision"
    )


def _is_angle(value: Any) -> bool:
    """Return whether a value is a finite number; a bool is not."""
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _some(ids: Iterable[str]) -> str:
    """Return the first few ids, for a message."""
    ordered = sorted(ids)
    return ", ".join(map(repr, ordered[:5])) + (", ..." if len(ordered) > 5 else "")
