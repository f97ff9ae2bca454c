"""Beam search over paths: the most probable path of the follower."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fq_toolkit.prevalent.model.follower import DecoderState, FollowerAgent
from fq_toolkit.prevalent.world.env import BatchedNavEnv
from fq_toolkit.prevalent.world.items import NavItem


class BeamPath(NamedTuple):
    """One path of the search.

    instr_id: name of the instruction.
    poses: (viewpoint, heading, elevation) at each state.
    actions: as in `BatchedNavEnv`; the last is 0 if the agent stopped.
    log_prob: sum of the log-probabilities of the actions.
    stopped: whether the path ends with stopping.
    """

    instr_id: str
    poses: tuple[tuple[str, float, float], ...]
    actions: tuple[int, ...]
    log_prob: float
    stopped: bool

    def record(self) -> dict[str, Any]:
        """Return the path in the official submission format."""
        return {"instr_id": self.instr_id, "trajectory": [list(pose) for pose in self.poses]}


@torch.no_grad()
def beam_search(
    agent: FollowerAgent, env: BatchedNavEnv, items: Sequence[NavItem], *, width: int, max_steps: int
) -> list[BeamPath]:
    """Return the most probable path of each item among those that a beam search finds.

    In every step the ``width`` most probable paths of an item are kept, including stopped ones. A path that
    has not stopped after ``max_steps`` actions ends where it is. With a width that is never exceeded the
    search is exhaustive; width 1 is greedy.

    Args:
        agent: the agent, in eval mode, or dropout disturbs the comparison.
        env: as for `rollout`; the search replaces its episodes.
        items: B tasks.
        width: number of paths kept per item.
        max_steps: largest number of actions.

    Returns:
        B paths. Only the path itself is submitted, not the views seen on other branches: the search needs a
        known graph, so its scores are not comparable with those of a single walk.

    Raises:
        ValueError: for a width or a number of steps below 1.
    """
    if width < 1 or max_steps < 1:
        raise ValueError(f"width and max_steps must be at least 1, got {width} and {max_steps}")
    first = env.reset(items)
    headings, elevations = first.heading.tolist(), first.elevation.tolist()
    beams = [
        [BeamPath(item.instr_id, ((item.start, headings[row], elevations[row]),), (), 0.0, False)]
        for row, item in enumerate(items)
    ]
    encoded = agent.read(items)  # once: rows of it are repeated for the paths of an item
    state = encoded.state
    rows = {(item, 0): item for item in range(len(items))}  # (item, place in its beam) -> row of the state
    for _ in range(max_steps):
        open_paths = [
            (item, place)
            for item, beam in enumerate(beams)
            for place, path in enumerate(beam)
            if not path.stopped
        ]
        if not open_paths:
            break
        # All open paths of all items are one batch; each starts where it has come to.
        observation = env.reset([_at(items[item], beams[item][place]) for item, place in open_paths])
        owners = torch.tensor([item for item, _ in open_paths], device=agent.device)
        picked = torch.tensor([rows[key] for key in open_paths], device=agent.device)
        log_probs, _, after = agent(encoded.rows(owners), state.rows(picked), observation)
        grown = _grow(open_paths, beams, observation, log_probs, env)
        state, beams, rows = _keep_best(agent, beams, grown, after, width)
    # Sums, not means over the length: the probability of a path is the product over its actions.
    return [max(beam, key=lambda path: path.log_prob) for beam in beams]


def _at(item: NavItem, path: BeamPath) -> NavItem:
    """Return a task that starts at the end of a path."""
    viewpoint, heading, elevation = path.poses[-1]
    return item._replace(path=(viewpoint,), heading=heading, elevation=elevation)


class _Grown(NamedTuple):
    """A path with one more action, and its row in the batch of the step."""

    path: BeamPath
    row: int


def _grow(
    open_paths: list[tuple[int, int]],
    beams: list[list[BeamPath]],
    observation: Any,
    log_probs: Tensor,
    env: BatchedNavEnv,
) -> list[list[_Grown]]:
    """Extend every open path by every possible action; returns the results for each item."""
    grown: list[list[_Grown]] = [[] for _ in beams]
    table = log_probs.double().tolist()  # one copy to the host instead of one per action
    counts = observation.action_mask.sum(-1).tolist()
    views = observation.candidate_views.tolist()
    for row, (item, place) in enumerate(open_paths):
        path = beams[item][place]
        scan = env.world.scan(observation.items[row].scan)
        here = scan.locate(path.poses[-1][0])
        for action in range(counts[row]):
            poses = path.poses
            if action:  # stopping adds no pose, as in `BatchedNavEnv.trajectories`
                there = scan.viewpoints[int(scan.neighbors[here, action - 1])]
                heading, elevation = env.direction(views[row][action])
                poses = (*poses, (there, heading, elevation))
            longer = BeamPath(
                path.instr_id, poses, (*path.actions, action), path.log_prob + table[row][action], action == 0
            )
            grown[item].append(_Grown(longer, row))
    return grown


def _keep_best(
    agent: FollowerAgent,
    beams: list[list[BeamPath]],
    grown: list[list[_Grown]],
    after: DecoderState,
    width: int,
) -> tuple[DecoderState, list[list[BeamPath]], dict[tuple[int, int], int]]:
    """Keep the best paths of each item.

    Returns:
        The decoder's states of the open ones, the beams, and (item, place in its beam) -> row of the states.
    """
    kept: list[list[BeamPath]] = []
    rows: dict[tuple[int, int], int] = {}
    origin: list[int] = []
    actions: list[int] = []
    for item, beam in enumerate(beams):
        # Stopped paths compete with those that go on; -1: they need no state any more.
        pool = [_Grown(path, -1) for path in beam if path.stopped] + grown[item]
        # A stable sort: among equally probable paths the stopped and the earlier ones stay.
        best = sorted(pool, key=lambda entry: -entry.path.log_prob)[:width]
        kept.append([entry.path for entry in best])
        for place, entry in enumerate(best):
            if not entry.path.stopped:
                rows[item, place] = len(origin)
                origin.append(entry.row)
                actions.append(entry.path.actions[-1])
    if not origin:  # everything has stopped
        return after, kept, rows
    state = after.rows(torch.tensor(origin, device=agent.device))
    return agent.act(state, torch.tensor(actions, device=agent.device)), kept, rows
