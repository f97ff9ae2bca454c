"""Requests in MiniWorld as items of a HANNA file: an object to find, and help on request."""

from pathlib import Path
from typing import Any

import numpy as np

from fq_toolkit.prevalent.data.annotations import hanna_items
from fq_toolkit.prevalent.files import DataError, write_json
from fq_toolkit.prevalent.miniworld.landmarks import LANDMARKS
from fq_toolkit.prevalent.miniworld.world import MiniWorld
from fq_toolkit.prevalent.world.items import NavItem

_PHRASES = ("find a {}", "find the nearest {}", "go and find a {}", "bring me to a {}")


def request_records(
    world: MiniWorld, count: int, *, seed: int = 0, min_edges: int = 3, max_edges: int = 8
) -> list[dict[str, Any]]:
    """Generate requests as the items of a HANNA file.

    The goals are all viewpoints of the building that have the landmark; each path is a shortest path to one
    of them.

    Args:
        world: the world.
        count: number of items.
        seed: seed of the requests.
        min_edges: least number of edges to the nearest goal.
        max_edges: largest number of edges to the nearest goal.

    Returns:
        ``{path_id, scan, heading, paths, instructions}``.

    Raises:
        DataError: if a thousand draws for one request find none.
    """
    generator = np.random.default_rng([world.seed, seed, 5])  # a stream of its own, see `MiniWorld`
    records: list[dict[str, Any]] = []
    for number in range(count):
        for _ in range(1000):
            name = world.names[generator.integers(len(world.names))]
            scan, thing = world.scan(name), int(generator.integers(len(LANDMARKS)))
            start = int(generator.integers(len(scan)))
            goals = np.nonzero(world.landmarks[name] == thing)[0]
            goals = goals[np.isfinite(scan.distances[start, goals])]
            if not len(goals):  # this building has no such thing
                continue
            # Nearest first, as the first path of a HANNA item is the annotated one.
            goals = goals[np.argsort(scan.distances[start, goals], kind="stable")]
            paths = [scan.shortest_path(start, int(goal)) for goal in goals]
            if min_edges <= len(paths[0]) - 1 <= max_edges:  # neither in sight nor hopelessly far
                break
        else:
            raise DataError(
                f"no request with a goal {min_edges} to {max_edges} edges away in a thousand draws: the "
                "scans are too small; lower min_edges"
            )
        phrase = _PHRASES[generator.integers(len(_PHRASES))]
        records.append(
            {
                "path_id": number,
                "scan": name,
                "heading": round(float(generator.uniform(0, 2 * np.pi)), 3),
                "paths": [[scan.viewpoints[node] for node in path] for path in paths],
                "instructions": [phrase.format(LANDMARKS[thing])],
            }
        )
    return records


def request_items(world: MiniWorld, count: int, *, seed: int = 0) -> list[NavItem]:
    """Return the items of `request_records` as `load_hanna` would."""
    return hanna_items(request_records(world, count, seed=seed), f"MiniWorld({world.seed})")


def write_requests(world: MiniWorld, path: str | Path, count: int, *, seed: int = 0) -> Path:
    """Write `request_records` as a HANNA file.

    Raises:
        RunError: if it cannot be written.
    """
    return write_json(Path(path), request_records(world, count, seed=seed), indent=1)
