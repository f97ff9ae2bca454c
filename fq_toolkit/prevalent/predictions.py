"""Prediction files in the official submission formats."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fq_toolkit.prevalent.files import DataError, field, read_records
from fq_toolkit.prevalent.items import NavItem
from fq_toolkit.training.atomic import write_atomic


def save_predictions(
    path: str | Path, trajectories: Iterable[dict[str, Any]], *, id_field: str = "instr_id"
) -> Path:
    """Write ``[{instr_id, trajectory}, ...]``, as the challenge servers of R2R and HANNA take it.

    Args:
        path: the file.
        trajectories: as from `BatchedNavEnv.trajectories`.
        id_field: ``"inst_idx"`` for NDH, whose ids are numbers.

    Returns:
        The file.

    Raises:
        ValueError: for another ``id_field``, or an id that occurs twice.
        RunError: when the file cannot be written.
    """
    if id_field not in ("instr_id", "inst_idx"):
        raise ValueError(f"id_field must be 'instr_id' or 'inst_idx', got {id_field!r}")
    path, records, seen = Path(path), [], set()
    for record in trajectories:
        name = str(record["instr_id"])
        if name in seen:
            raise ValueError(f"instruction {name!r} occurs twice among the trajectories")
        seen.add(name)
        rest = {key: value for key, value in record.items() if key != "instr_id"}
        records.append({id_field: int(name) if id_field == "inst_idx" else name, **rest})
    write_atomic(path, json.dumps(records).encode())
    return path


def load_predictions(path: str | Path, items: Sequence[NavItem]) -> list[dict[str, Any]]:
    """Read predictions and put them into the order of the items.

    Args:
        path: JSON list of ``{instr_id or inst_idx, trajectory}``; HANNA's ``agent_pose`` is a trajectory too.
        items: what was to be predicted.

    Returns:
        For each item its record, with a list of viewpoints as ``"path"``.

    Raises:
        DataError: naming the file and the ids, for a damaged file, and for duplicate, missing or unknown ids
            (the official programs ignore unknown ones; they mean that the annotations are of another split).
    """
    path = Path(path)
    found: dict[str, dict[str, Any]] = {}
    for position, record in enumerate(read_records(path)):
        where = f"{path}: item {position}"
        key = "inst_idx" if "instr_id" not in record and "inst_idx" in record else "instr_id"
        name = str(field(record, key, (int, str), where))
        where = f"{path}: {key} {name!r}"
        if name in found:
            raise DataError(f"{where} is a duplicate; expected one trajectory per instruction")
        poses = field(
            record,
            "agent_pose" if "trajectory" not in record and "agent_pose" in record else "trajectory",
            list,
            where,
        )
        for step, pose in enumerate(poses):
            if not (isinstance(pose, list) and pose and isinstance(pose[0], str)):
                raise DataError(
                    f"{where}: step {step} is {str(pose)[:60]}; expected [viewpoint, heading, elevation]"
                )
        if not poses:
            raise DataError(f"{where}: the trajectory is empty; it must hold the start at least")
        found[name] = {**record, "path": [pose[0] for pose in poses]}
    expected = {item.instr_id for item in items}
    for problem, ids in (("missing", expected - found.keys()), ("unknown", found.keys() - expected)):
        if ids:
            raise DataError(
                f"{path}: {len(ids)} {problem} ids of {len(expected)} expected: {_some(ids)}; are "
                "predictions and annotations of the same split?"
            )
    return [found[item.instr_id] for item in items]


def _some(ids: Iterable[str]) -> str:
    """Return the first few ids."""
    ordered = sorted(ids)
    return ", ".join(map(repr, ordered[:5])) + (", ..." if len(ordered) > 5 else "")
