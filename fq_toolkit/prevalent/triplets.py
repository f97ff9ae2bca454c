"""PREVALENT triplets: what was said, where the agent was at each step, and what it did."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from fq_toolkit.prevalent.angles import STEP, VIEWS, snap, wrap
from fq_toolkit.prevalent.files import DataError, field, read_records
from fq_toolkit.prevalent.items import NavItem, check_disjoint
from fq_toolkit.prevalent.world import NavWorld
from fq_toolkit.training.atomic import write_atomic

TOKENS = 80
"""Token ids of an instruction, padded."""

ActionLabel = Literal["prevalent", "view36", "candidate"]
_STOP_ACTION = (-1.0, 90.0, 90.0)


class Pose(NamedTuple):
    """Where an agent is and looks; radians."""

    scan: str
    viewpoint: str
    view: int
    heading: float
    elevation: float


class Triplet(NamedTuple):
    """One path with its instruction; step ``t`` of it is one training example.

    instr_id: name of the instruction.
    path: pose at each of T steps.
    actions: T labels; the last stops.
    directions: T times (absolute view, relative heading, elevation) of the move; (-1, 90, 90) for stop.
    tokens: 80 token ids, CLS .. SEP padded.
    """

    instr_id: str
    path: tuple[Pose, ...]
    actions: tuple[int, ...]
    directions: tuple[tuple[float, float, float], ...]
    tokens: tuple[int, ...]


def action_label(
    world: NavWorld,
    scan: str,
    viewpoint: str,
    view: int,
    target: str | None,
    *,
    kind: ActionLabel = "prevalent",
) -> int:
    """Return the number of an action.

    ``prevalent``: 0 stops, k is the k-th neighbour by |relative heading| (of equals the earlier viewpoint);
    ``view36``: 0 stops, 1 + the view, relative to the heading, that shows the target (37 classes);
    ``candidate``: 0 stops, k is the k-th neighbour, as in `BatchedNavEnv`.

    Args:
        world: the graphs.
        scan: building.
        viewpoint: where the agent is.
        view: its view, 0 to 35.
        target: a neighbour, or None to stop.
        kind: which numbering.

    Raises:
        ValueError: for an unknown kind.
        DataError: when the target is no neighbour.

    Example:
        >>> from fq_toolkit.prevalent import MiniWorld
        >>> world = MiniWorld(0)
        >>> item = world.items(1)[0]
        >>> action_label(world, item.scan, item.path[0], 12, None)
        0
    """
    if kind not in get_args(ActionLabel):
        raise ValueError(f"kind must be one of {', '.join(map(repr, get_args(ActionLabel)))}, got {kind!r}")
    if target is None:
        return 0
    here = world.scan(scan)
    row = here.locate(viewpoint)
    slots = np.nonzero((here.neighbors[row] == here.locate(target)) & here.mask[row])[0]
    if not len(slots):
        raise DataError(f"scan {scan!r}: there is no edge from {viewpoint!r} to {target!r}")
    slot = int(slots[0])
    if kind == "candidate":
        return 1 + slot
    if kind == "view36":
        shown = int(here.views[row, slot])
        return 1 + (shown - view) % 12 + 12 * (shown // 12)
    relative = np.abs(wrap(here.headings[row][here.mask[row]] - view % 12 * STEP))
    return 1 + int(np.argsort(np.round(relative, 6), kind="stable").tolist().index(slot))


def collect_triplets(
    world: NavWorld,
    items: Iterable[NavItem],
    encode: Callable[[str], Sequence[int]],
    *,
    kind: ActionLabel = "prevalent",
) -> list[Triplet]:
    """Walk along the annotated paths and note what the agent sees and does.

    Args:
        world: the graphs.
        items: tasks of the training split.
        encode: instruction -> exactly 80 token ids, padded.
        kind: numbering of the actions.

    Raises:
        DataError: naming the item, for an instruction of another length, or a path over a non-edge.
    """
    found = []
    for item in items:
        tokens = tuple(int(token) for token in encode(item.instruction))
        if len(tokens) != TOKENS:
            raise DataError(
                f"item {item.instr_id!r}: the instruction has {len(tokens)} token ids; expected exactly "
                f"{TOKENS}: encode must cut and pad"
            )
        poses, actions, directions = [], [], []
        heading, elevation, view = snap(item.heading, item.elevation)
        for viewpoint, target in zip(item.path, (*item.path[1:], None), strict=True):
            poses.append(Pose(item.scan, viewpoint, view, heading, elevation))
            try:
                actions.append(action_label(world, item.scan, viewpoint, view, target, kind=kind))
            except DataError as error:
                raise DataError(f"item {item.instr_id!r}: {error}") from error
            if target is None:
                directions.append(_STOP_ACTION)
                continue
            scan = world.scan(item.scan)
            row = scan.locate(viewpoint)
            slot = int(np.nonzero(scan.neighbors[row] == scan.locate(target))[0][0])
            shown = int(scan.views[row, slot])
            directions.append(
                (
                    float(shown),
                    float(wrap(scan.headings[row, slot] - heading)),
                    float(scan.elevations[row, slot]),
                )
            )
            view = shown
            heading, elevation = view % 12 * STEP, (view // 12 - 1) * STEP
        found.append(Triplet(item.instr_id, tuple(poses), tuple(actions), tuple(directions), tokens))
    return found


def save_triplets(path: str | Path, triplets: Iterable[Triplet]) -> Path:
    """Write triplets in the format of the released ones.

    Returns:
        The file.

    Raises:
        RunError: when it cannot be written.
    """
    path = Path(path)
    records = [
        {
            "instr_id": triplet.instr_id,
            "path": [list(pose) for pose in triplet.path],
            "teacher_actions": list(triplet.actions),
            "teacher_action_emd": [
                [int(shown), heading, elevation] for shown, heading, elevation in triplet.directions
            ],
            "instr_encoding": list(triplet.tokens),
        }
        for triplet in triplets
    ]
    write_atomic(path, json.dumps(records).encode())
    return path


def load_triplets(path: str | Path, *, held_out: Iterable[NavItem] = ()) -> list[Triplet]:
    """Read triplets.

    Args:
        path: JSON list of ``{instr_id, path, teacher_actions, teacher_action_emd, instr_encoding}``.
        held_out: items of validation and test splits, none of whose paths may be in this file. The published
            file does hold validation paths.

    Raises:
        DataError: naming file and item, for a damaged file, fields that do not fit each other, an
            instruction that is not 80 ids long, or a held-out path.
    """
    path = Path(path)
    found = []
    for position, record in enumerate(read_records(path)):
        name = str(field(record, "instr_id", (int, str), f"{path}: item {position}"))
        where = f"{path}: item {name!r}"
        poses = [
            _pose(entry, f"{where}, step {i}") for i, entry in enumerate(field(record, "path", list, where))
        ]
        actions = field(record, "teacher_actions", list, where)
        directions = field(record, "teacher_action_emd", list, where)
        tokens = field(record, "instr_encoding", list, where)
        if not len(poses) == len(actions) == len(directions) or not poses:
            raise DataError(
                f"{where}: {len(poses)} poses, {len(actions)} actions and {len(directions)} action "
                "embeddings; expected one of each per step"
            )
        if len(tokens) != TOKENS:
            raise DataError(f"{where}: instr_encoding has {len(tokens)} ids; expected exactly {TOKENS}")
        if not all(type(action) is int and 0 <= action <= VIEWS for action in actions) or actions[-1] != 0:
            raise DataError(
                f"{where}: teacher_actions must be 0 to {VIEWS} and end with 0 (stop), got {actions}"
            )
        try:
            moves = tuple((float(a), float(b), float(c)) for a, b, c in directions)
            ids = tuple(int(token) for token in tokens)
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: an action embedding or a token id is no number ({error})") from error
        found.append(Triplet(name, tuple(poses), tuple(actions), moves, ids))
    paths = [
        NavItem(t.instr_id, t.path[0].scan, 0.0, tuple(pose.viewpoint for pose in t.path), (), "")
        for t in found
    ]
    check_disjoint(paths, held_out, source=str(path))
    return found


def _pose(entry: Any, where: str) -> Pose:
    """Return the pose of ``[scan, viewpoint, viewIndex, heading, elevation]``."""
    if (
        not isinstance(entry, list)
        or [type(value) for value in entry[:3]] != [str, str, int]
        or len(entry) != 5
        or not all(isinstance(value, (int, float)) for value in entry[3:])
        or not 0 <= entry[2] < VIEWS
    ):
        raise DataError(f"{where} is {str(entry)[:80]}; expected [scan, viewpoint, view, heading, elevation]")
    return Pose(entry[0], entry[1], entry[2], float(entry[3]), float(entry[4]))
