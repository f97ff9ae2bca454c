"""Sampling paths: shortest paths that are neither too short nor too long."""

import numpy as np

from fq_toolkit.prevalent.files import DataError
from fq_toolkit.prevalent.world import NavWorld


def sample_paths(
    world: NavWorld,
    count: int,
    *,
    seed: int = 0,
    min_length: float = 5.0,
    min_edges: int = 4,
    max_edges: int = 6,
) -> list[tuple[str, list[str]]]:
    """Draw shortest paths with at least some length and some number of edges.

    Scans are drawn evenly, then pairs of viewpoints; pairs may repeat.

    Args:
        world: the graphs.
        count: how many.
        seed: of the draw.
        min_length: metres.
        min_edges: of a path.
        max_edges: of a path.

    Returns:
        ``count`` times (scan, viewpoints).

    Raises:
        ValueError: for impossible bounds.
        DataError: when a thousand draws for one path find none.

    Example:
        >>> from fq_toolkit.prevalent import MiniWorld
        >>> [(scan, path)] = sample_paths(MiniWorld(0), 1)
        >>> 5 <= len(path) <= 7
        True

    Source: R2R, arXiv 1711.07280, section 4.2: at least 5 m and 4 to 6 edges.
    """
    if not 0 < min_edges <= max_edges:
        raise ValueError(f"expected 0 < min_edges <= max_edges, got {min_edges} and {max_edges}")
    generator = np.random.default_rng(seed)
    found: list[tuple[str, list[str]]] = []
    for _ in range(count):
        for _ in range(1000):
            scan = world.scan(world.names[generator.integers(len(world.names))])
            start, goal = generator.integers(len(scan), size=2)
            if not min_length <= scan.distances[start, goal] < np.inf:
                continue
            path = scan.shortest_path(int(start), int(goal))
            if min_edges <= len(path) - 1 <= max_edges:
                found.append((scan.name, [scan.viewpoints[i] for i in path]))
                break
        else:
            raise DataError(
                f"no path of at least {min_length:g} m and {min_edges} to {max_edges} edges in a thousand "
                "draws: the scans are too small; lower min_length or min_edges"
            )
    return found
