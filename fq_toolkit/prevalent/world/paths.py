"""Sampling of shortest paths within bounds of length and edges."""

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np

from fq_toolkit.prevalent.files import DataError
from fq_toolkit.prevalent.world.scan import Scan
from fq_toolkit.prevalent.world.world import NavWorld


def drop_repeats(path: Sequence[str]) -> list[str]:
    """Return a path without immediate repetitions: turning on the spot is not a step.

    Example:
        >>> drop_repeats(["a", "a", "b", "a"])
        ['a', 'b', 'a']
    """
    return [viewpoint for viewpoint, _ in groupby(path)]


def sample_paths(
    world: NavWorld,
    count: int,
    *,
    seed: int = 0,
    min_length: float = 5.0,
    min_edges: int = 4,
    max_edges: int = 6,
) -> list[tuple[str, list[str]]]:
    """Draw shortest paths within bounds of length and number of edges.

    A scan is drawn uniformly, then a pair of viewpoints; pairs may repeat.

    Args:
        world: the graphs.
        count: number of paths.
        seed: seed of the draw.
        min_length: least length of a path, metres.
        min_edges: least number of edges of a path.
        max_edges: largest number of edges of a path.

    Returns:
        ``count`` times (scan, viewpoints).

    Raises:
        ValueError: for impossible bounds.
        DataError: if a thousand draws for one path find none.

    Example:
        >>> from fq_toolkit.prevalent import MiniWorld
        >>> [(scan, path)] = sample_paths(MiniWorld(0), 1)
        >>> 5 <= len(path) <= 7
        True

    Source: R2R, arXiv 1711.07280, section 4.2: at least 5 m and 4 to 6 edges.
    """
    _check_edges(min_edges, max_edges)
    generator = np.random.default_rng(seed)
    paths: list[tuple[str, list[str]]] = []
    for _ in range(count):
        for _ in range(1000):
            scan = world.scan(world.names[generator.integers(len(world.names))])
            start, goal = generator.integers(len(scan), size=2)
            # By its length first: the path itself is only searched for where it may fit.
            if not min_length <= scan.distances[start, goal] < np.inf:
                continue
            path = scan.shortest_path(int(start), int(goal))
            if min_edges <= len(path) - 1 <= max_edges:
                paths.append((scan.name, [scan.viewpoints[i] for i in path]))
                break
        else:
            raise DataError(
                f"no path of at least {min_length:g} m and {min_edges} to {max_edges} edges in a thousand "
                "draws: the scans are too small; lower min_length or min_edges"
            )
    return paths


def path_ends(scan: Scan, *, min_length: float, min_edges: int, max_edges: int) -> np.ndarray:
    """Return start and goal of every shortest path within bounds, int64 (n, 2).

    Args:
        scan: the graph.
        min_length: least length, metres.
        min_edges: least number of edges of the path that `Scan.shortest_path` returns.
        max_edges: largest number of edges.
    """
    count = len(scan)
    # The first step from i to j that `shortest_path` takes, slot by slot: an (n, degree, n) array would take
    # 13 times the memory. `<` keeps the lowest of equal slots, as argmin in `shortest_path` does.
    best = np.full((count, count), np.inf)
    step = np.repeat(np.arange(count)[:, None], count, axis=1)
    for slot in range(scan.neighbors.shape[1]):
        way = scan.lengths[:, slot, None] + scan.distances[scan.neighbors[:, slot]]
        nearer = way < best
        best = np.where(nearer, way, best)
        step = np.where(nearer, scan.neighbors[:, slot, None], step)
    goal = np.arange(count)[None]
    here = np.repeat(np.arange(count)[:, None], count, axis=1)
    edges = np.zeros((count, count), dtype=np.int64)
    for _ in range(max_edges + 1):  # all pairs walk at once; more than max_edges need not be told apart
        away = here != goal
        edges += away
        here = np.where(away, step[here, goal], here)
    fits = (scan.distances >= min_length) & np.isfinite(scan.distances)
    return np.argwhere(fits & (edges >= min_edges) & (edges <= max_edges))


def distinct_paths(
    world: NavWorld,
    count: int | None,
    *,
    seed: int = 0,
    min_length: float = 5.0,
    min_edges: int = 4,
    max_edges: int = 6,
    accept: Callable[[str, tuple[str, ...]], bool] = lambda scan, path: True,
) -> list[tuple[str, list[str]]]:
    """Draw shortest paths as `sample_paths` does, each at most once.

    Scans are drawn uniformly among those that have paths left.

    Args:
        world: the graphs.
        count: number of paths; None for all. If there are fewer, all are returned, in the order of the draw.
        seed: seed of the draw.
        min_length: least length of a path, metres.
        min_edges: least number of edges of a path.
        max_edges: largest number of edges of a path.
        accept: (scan, viewpoints) -> whether the path may be drawn.

    Raises:
        ValueError: for impossible bounds.

    Example:
        >>> from fq_toolkit.prevalent import MiniWorld
        >>> everything = distinct_paths(MiniWorld(0), None)
        >>> len(everything) == len({(scan, *path) for scan, path in everything})
        True
    """
    _check_edges(min_edges, max_edges)
    generator = np.random.default_rng(seed)
    left: dict[str, list[tuple[int, int]]] = {}
    paths: list[tuple[str, list[str]]] = []
    open_scans = list(world.names)
    while open_scans and (count is None or len(paths) < count):
        place = int(generator.integers(len(open_scans)))
        scan = world.scan(open_scans[place])
        if scan.name not in left:
            ends = path_ends(scan, min_length=min_length, min_edges=min_edges, max_edges=max_edges)
            # Shuffled once and taken from the end: no draw is ever repeated, so the loop ends.
            left[scan.name] = [(int(a), int(b)) for a, b in generator.permutation(ends)]
        while left[scan.name]:
            path = [scan.viewpoints[i] for i in scan.shortest_path(*left[scan.name].pop())]
            if accept(scan.name, tuple(path)):
                paths.append((scan.name, path))
                break
        else:
            open_scans.pop(place)
    return paths


def _check_edges(min_edges: int, max_edges: int) -> None:
    """Raise ValueError for bounds that no path can satisfy."""
    if not 0 < min_edges <= max_edges:
        raise ValueError(f"expected 0 < min_edges <= max_edges, got {min_edges} and {max_edges}")
