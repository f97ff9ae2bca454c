"""Dialogs in MiniWorld as items of an NDH file: a navigator looks for an object and asks an oracle."""

from pathlib import Path
from typing import Any

import numpy as np

from fq_toolkit.prevalent.data.annotations import PathType, ndh_items
from fq_toolkit.prevalent.files import write_json
from fq_toolkit.prevalent.miniworld.landmarks import describe_path
from fq_toolkit.prevalent.miniworld.world import MiniWorld
from fq_toolkit.prevalent.world.items import NavItem
from fq_toolkit.prevalent.world.paths import sample_paths
from fq_toolkit.prevalent.world.scan import Scan

_PLANNED = 3  # edges that the oracle sees ahead
_QUESTIONS = ("where do i go now", "which way is it", "am i close", "should i go on")


def dialog_records(
    world: MiniWorld, count: int, *, seed: int = 0, mistakes: float = 0.15, first_id: int = 0
) -> list[dict[str, Any]]:
    """Generate dialog turns as the items of an NDH file.

    A game is a path of 4 to 8 edges to a landmark. In each turn the oracle describes the next 3 edges of the
    shortest path and the navigator walks them; sometimes it walks further, sometimes it goes wrong. Every
    turn is an item whose history contains all that was said before.

    Args:
        world: the world.
        count: number of items.
        seed: seed of the games.
        mistakes: share of turns in which the navigator leaves the path.
        first_id: the first ``inst_idx``.

    Returns:
        ``{inst_idx, game_idx, scan, target, start_pano, end_panos, dialog_history, planner_path,
        player_path}``.

    Raises:
        ValueError: for a share outside [0, 1].
    """
    if not 0 <= mistakes <= 1:
        raise ValueError(f"mistakes must be a share between 0 and 1, got {mistakes}")
    generator = np.random.default_rng([world.seed, seed, 4])  # a stream of its own, see `MiniWorld`
    records: list[dict[str, Any]] = []
    paths = sample_paths(world, count, seed=seed, min_edges=4, max_edges=8)
    for game, (name, path) in enumerate(paths):
        if len(records) >= count:
            break
        scan = world.scan(name)
        place, goal = scan.locate(path[0]), scan.locate(path[-1])
        # As in CVDN, every viewpoint of the goal's region ends the game.
        near = scan.neighbors[goal][scan.mask[goal] & (scan.lengths[goal] < 2.0)]
        ends = [goal, *near.tolist()]
        heading = round(float(generator.uniform(0, 2 * np.pi)), 3)
        history: list[dict[str, Any]] = []
        for turn in range(3):
            if place in ends:  # the object is found
                break
            planned = scan.shortest_path(place, goal)[: _PLANNED + 1]
            told = describe_path(scan, world.landmarks[name], planned, heading, generator, turns=world.turns)
            question = _QUESTIONS[generator.integers(len(_QUESTIONS))]
            for role, message in (("navigator", question), ("oracle", told)):
                history.append({"nav_idx": turn, "role": role, "message": message})
            walked = _walk(scan, planned, goal, mistakes, generator)
            records.append(
                {
                    "inst_idx": first_id + len(records),
                    "game_idx": game,
                    "scan": name,
                    "target": world.landmark(name, path[-1]),
                    "start_pano": {"pano": scan.viewpoints[place], "heading": heading, "elevation": 0.0},
                    "end_panos": [scan.viewpoints[end] for end in ends],
                    "dialog_history": list(history),  # a copy: the next turn appends to it
                    "planner_path": [scan.viewpoints[node] for node in planned],
                    "player_path": [scan.viewpoints[node] for node in walked],
                }
            )
            if len(walked) > 1:
                slot = scan.slot(walked[-2], walked[-1])
                heading = round(float(scan.headings[walked[-2], slot] % (2 * np.pi)), 3)
            place = walked[-1]  # the next turn begins where the navigator has come to
    return records[:count]  # the last game may have gone over


def planner_goal(world: MiniWorld, item: NavItem) -> str:
    """Return the end of the planner's path of an item of `dialog_items`."""
    scan = world.scan(item.scan)
    path = scan.shortest_path(scan.locate(item.start), scan.locate(item.regions[0]))
    return scan.viewpoints[path[: _PLANNED + 1][-1]]


def _walk(
    scan: Scan, planned: list[int], goal: int, mistakes: float, generator: np.random.Generator
) -> list[int]:
    """Return the path of a navigator that was told the planned one."""
    draw = generator.random()
    if draw < mistakes:
        turn_off = int(generator.integers(1, len(planned)))  # follows at least one edge of what was said
        walked = planned[:turn_off]
        for _ in range(2):
            options = scan.neighbors[walked[-1]][scan.mask[walked[-1]]]
            walked = [*walked, int(generator.choice(options))]
        return walked
    if draw < 0.5 and planned[-1] != goal:
        return [*planned, *scan.shortest_path(planned[-1], goal)[1 : 1 + int(generator.integers(1, 3))]]
    return planned


def dialog_items(
    world: MiniWorld, count: int, *, seed: int = 0, target: PathType = "trusted", max_words: int | None = None
) -> list[NavItem]:
    """Return the items of `dialog_records` as `load_ndh` would."""
    records = dialog_records(world, count, seed=seed)
    return ndh_items(records, f"MiniWorld({world.seed})", target=target, max_words=max_words)


def write_dialogs(world: MiniWorld, path: str | Path, count: int, *, seed: int = 0) -> Path:
    """Write `dialog_records` as an NDH file.

    Raises:
        RunError: if it cannot be written.
    """
    return write_json(Path(path), dialog_records(world, count, seed=seed), indent=1)
