"""PREVALENT triplets: the instruction, the pose of the agent at each step, and its action."""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from fq_toolkit.prevalent.files import DataError
from fq_toolkit.prevalent.text.vocabulary import LONGEST
from fq_toolkit.prevalent.world.angles import STEP, snap, wrap
from fq_toolkit.prevalent.world.items import NavItem
from fq_toolkit.prevalent.world.world import NavWorld

TOKENS = LONGEST + 2
"""Token ids of an instruction with ``[CLS]`` and ``[SEP]``, padded; the length of the released ones."""

ActionLabel = Literal["prevalent", "view36", "candidate"]
_STOP_ACTION = (-1.0, 90.0, 90.0)  # as released: degrees, although moves are in radians


class Pose(NamedTuple):
    """Place and viewing direction of an agent; radians."""

    scan: str
    viewpoint: str
    view: int
    heading: float
    elevation: float


class Triplet(NamedTuple):
    """One path with its instruction; step ``t`` of it is one training example.

    instr_id: name of the instruction.
    path: pose at each of T steps.
    actions: T labels; the last one stops.
    directions: T times (absolute view, relative heading, elevation) of the move; (-1, 90, 90) for stop.
    tokens: CLS .. SEP, padded to 80 token ids or to the requested number.

    Source: arXiv 2002.10638, section 4.4 (pre-training datasets).
    """

    instr_id: str
    path: tuple[Pose, ...]
    actions: tuple[int, ...]
    directions: tuple[tuple[float, float, float], ...]
    tokens: tuple[int, ...]


def triplet_item(triplet: Triplet) -> NavItem:
    """Return the task of a triplet, with its path and without words; for `check_disjoint`."""
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
        scan: the building.
        viewpoint: where the agent is.
        view: its view, 0 to 35.
        target: a neighbour, or None to stop.
        kind: the numbering.

    Raises:
        ValueError: for an unknown kind.
        DataError: if the target is not a neighbour.

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
    slot = here.slot(row, here.locate(target))
    if kind == "candidate":
        return 1 + slot
    if kind == "view36":  # rows of 12 views keep their elevation, headings turn with the agent
        shown = int(here.views[row, slot])
        return 1 + (shown - view) % 12 + 12 * (shown // 12)
    relative = np.abs(wrap(here.headings[row][here.mask[row]] - view % 12 * STEP))
    # Rounded and stable, so that two neighbours at the same angle left and right keep the order of the file
    # on every machine.
    return 1 + int(np.argsort(np.round(relative, 6), kind="stable").tolist().index(slot))


def collect_triplets(
    world: NavWorld,
    items: Iterable[NavItem],
    encode: Callable[[str], Sequence[int]],
    *,
    kind: ActionLabel = "prevalent",
    length: int = TOKENS,
) -> list[Triplet]:
    """Walk along the annotated paths and record the poses and actions of the agent.

    Args:
        world: the graphs.
        items: tasks of the training split.
        encode: instruction -> exactly ``length`` token ids, padded.
        kind: numbering of the actions.
        length: length of every encoding.

    Raises:
        DataError: naming the item, for an instruction of another length, or a path over a non-edge.
    """
    triplets = []
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
        heading, elevation, view = snap(item.heading, item.elevation)  # episodes begin at one of 36 views
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
            slot = scan.slot(row, scan.locate(target))
            shown = int(scan.views[row, slot])
            directions.append(
                (
                    float(shown),
                    float(wrap(scan.headings[row, slot] - heading)),
                    float(scan.elevations[row, slot]),
                )
            )
            view = shown  # a move turns the camera to the view that shows the target
            heading, elevation = view % 12 * STEP, (view // 12 - 1) * STEP
        triplets.append(Triplet(item.instr_id, tuple(poses), tuple(actions), tuple(directions), tokens))
    return triplets
