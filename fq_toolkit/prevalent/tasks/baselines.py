"""What is possible without learning: staying, a random walk, and the shortest path."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fq_toolkit.prevalent.data.splits import Split
from fq_toolkit.prevalent.world.items import NavItem
from fq_toolkit.prevalent.world.scan import Scan


def stay(scan: Scan, item: NavItem, generator: np.random.Generator, max_steps: int) -> list[int]:
    """Return the path of an agent that stops at once."""
    return [scan.locate(item.start)]


def random_walk(scan: Scan, item: NavItem, generator: np.random.Generator, max_steps: int) -> list[int]:
    """Return the path of an agent for which all actions, stopping included, are equally likely."""
    path = [scan.locate(item.start)]
    while len(path) <= max_steps:
        neighbors = scan.neighbors[path[-1]][scan.mask[path[-1]]]
        action = int(generator.integers(len(neighbors) + 1))
        if action == len(neighbors):  # one more than there are neighbours: stopping
            break
        path.append(int(neighbors[action]))
    return path


def shortest_path(scan: Scan, item: NavItem, generator: np.random.Generator, max_steps: int) -> list[int]:
    """Return the path of an agent that knows building and goal: what the teacher of imitation shows."""
    start, goals = scan.locate(item.start), [scan.locate(goal) for goal in item.goals]
    return scan.shortest_path(start, goals[int(np.argmin(scan.distances[start, goals]))])[: max_steps + 1]


BASELINES: dict[str, Callable[[Scan, NavItem, np.random.Generator, int], list[int]]] = {
    "staying": stay,
    "random walk": random_walk,
    "shortest path": shortest_path,
}


def baseline_records(name: str, split: Split, *, max_steps: int, seed: int = 0) -> list[dict[str, Any]]:
    """Let a baseline do all items of a split.

    Args:
        name: ``"staying"``, ``"random walk"`` or ``"shortest path"``.
        split: tasks, with goals for the shortest path.
        max_steps: an episode ends then.
        seed: of the random walk.

    Returns:
        A record per item in the official submission format; nobody asks for help.

    Example:
        >>> from fq_toolkit.prevalent.miniworld.world import MiniWorld
        >>> world = MiniWorld(0)
        >>> split = Split("train", world.items(1), world, world.features())
        >>> [len(baseline_records(name, split, max_steps=8)[0]["trajectory"]) for name in BASELINES]
        [1, 1, 6]
    """
    generator, records = np.random.default_rng(seed), []
    for item in split.items:
        scan = split.world.scan(item.scan)
        # One generator for all items, in their order: the same seed walks the same ways.
        path = BASELINES[name](scan, item, generator, max_steps)
        poses = [[scan.viewpoints[node], item.heading, 0.0] for node in path]
        records.append({"instr_id": item.instr_id, "trajectory": poses, "agent_ask": [0] * len(path)})
    return records
