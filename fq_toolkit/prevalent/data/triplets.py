"""PREVALENT triplets: what was said, where the agent was at each step, and what it did."""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from fq_toolkit.prevalent.files import DataError
from fq_toolkit.prevalent.text.vocabulary import LONGEST
from fq_toolkit.prevalent.world.angles import STEP, snap, wrap
from fq_toolkit.prevalent.world.items import NavItem
from fq_toolkit.prevalent.world.world import NavWorld

TOKENS = LONGEST + 2
"""Token ids of an instruction, ``[CLS]`` and ``[SEP]`` among them, padded."""

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
    tokens: 80 token ids, or as many as were asked for, CLS .. SEP padded.
    """

    instr_id: str
    path: tuple[Pose, ...]
    actions: tuple[int, ...]
    directions: tuple[tuple[float, float, float], ...]
    tokens: tuple[int, ...]


def triplet_item(triplet: Triplet) -> NavItem:
    """Return the task of a triplet, with its path and without words, for `check_disjoint`."""
    path = tuple(pose.viewpoint for pose in triplet.path)
    return NavItem(triplet.instr_id, triplet.path[0].scan, 0.0, path, (), "")


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
    length: int = TOKENS,
) -> list[Triplet]:
    """Walk along the annotated paths and note what the agent sees and does.

    Args:
        world: the graphs.
        items: tasks of the training split.
        encode: instruction -> exactly ``length`` token ids, padded.
        kind: numbering of the actions.
        length: of every encoding.

    Raises:
        DataError: naming the item, for an instruction of another length, or a path over a non-edge.
    """
    found = []
    for item in items:
        try:
            tokens = tuple(int(token) for token in encode(item.instruction))
        except ValueError as error:  # such as Vocabulary.encode's for a text that is too long
            raise DataError(f"item {item.instr_id!r}: {error}") from error
        if len(tokens) != length:
            raise DataError(
                f"item {item.instr_id!r}: the instruction has {len(tokens)} token ids; expected exactly "
                f"{length}: encode must pad, and cut where that is wanted"
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
