"""Metrics of paths on a navigation graph, for all items at once, in float64.

Own code, because the official programs measure one item at a time in Python and disagree at their edges; all
items are measured here by a few array operations, by the rules that `measure_paths` states.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from fq_toolkit.prevalent.files import DataError
from fq_toolkit.prevalent.world.world import NavWorld


class PathMetrics(NamedTuple):
    """Metrics per item, float64 (N,); lengths and errors in metres, the rest in [0, 1].

    TL: trajectory length, the length of the agent's path.
    NE: navigation error, the distance from its end to the goal.
    OE: oracle error, the least distance from any of its viewpoints to the goal.
    SR: success, 1 if NE is inside the success radius.
    OSR: oracle success, 1 if OE is inside the success radius.
    SPL: success weighted by path length, SR * shortest / max(shortest, TL). If start is goal: 1 for staying,
        else 0.
    CLS: coverage weighted by length score.
    nDTW: normalized dynamic time warping.
    SDTW: success weighted by nDTW, SR * nDTW.
    """

    TL: np.ndarray
    NE: np.ndarray
    OE: np.ndarray
    SR: np.ndarray
    OSR: np.ndarray
    SPL: np.ndarray
    CLS: np.ndarray
    nDTW: np.ndarray
    SDTW: np.ndarray


class _Rows(NamedTuple):
    """Paths as numbers of viewpoints, padded with their last one, which changes no length and no minimum."""

    nodes: np.ndarray
    counts: np.ndarray


def _pad(paths: Sequence[Sequence[int]]) -> _Rows:
    """Return paths of different length as one array."""
    counts = np.array([len(path) for path in paths])
    nodes = np.empty((len(paths), int(counts.max())), dtype=np.int64)
    for row, path in zip(nodes, paths, strict=True):
        row[: len(path)] = path
        row[len(path) :] = path[-1]
    return _Rows(nodes, counts)


class _Distances:
    """Distances in the scans of a batch of items, as one flat table.

    Args:
        world: the graphs.
        scans: the scan of each item.
    """

    def __init__(self, world: NavWorld, scans: Sequence[str]) -> None:
        names = list(dict.fromkeys(scans))
        tables = {name: world.scan(name) for name in names}
        starts = np.cumsum([0] + [len(tables[name]) ** 2 for name in names])
        start = dict(zip(names, starts, strict=False))  # the last of `starts` is the end of the table
        self.table = np.concatenate([tables[name].distances.ravel() for name in names])
        self.edges = np.concatenate([tables[name].adjacent.ravel() for name in names])
        self.start = np.array([start[name] for name in scans])
        self.size = np.array([len(tables[name]) for name in scans])

    def flat(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the places in the table of pairs of viewpoints (N, ...) of each item."""
        # Scans differ in size, so a stacked (scans, n, n) array would be padded to the largest.
        shape = (-1,) + (1,) * (max(a.ndim, b.ndim) - 1)
        return self.start.reshape(shape) + a * self.size.reshape(shape) + b

    def __call__(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return self.table[self.flat(a, b)]


def measure_paths(
    world: NavWorld,
    scans: Sequence[str],
    paths: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]],
    goals: Sequence[Sequence[str]],
    *,
    names: Sequence[str] | None = None,
    success_radius: float = 3.0,
    inclusive: bool = False,
    threshold: float = 3.0,
) -> PathMetrics:
    """Measure the paths of agents against annotated paths.

    With ``d`` the length of a shortest path, ``P = p_1 .. p_n`` the agent's path, ``R`` the annotated one,
    ``g`` the goal and ``t`` the threshold::

        TL   = sum of d(p_i, p_i+1)
        NE   = d(p_n, g),   OE = min over p in P of d(p, g)
        SR   = [NE < radius],   OSR = [OE < radius]
        SPL  = SR * d(p_1, g) / max(d(p_1, g), TL)
        PC   = mean over r in R of exp(-min over p in P of d(r, p) / t)          (path coverage)
        EPL  = PC * length(R)                                          (expected path length)
        CLS  = PC * EPL / (EPL + |EPL - TL|)
        DTW  = min over monotone alignments of R and P of the sum of d(r_i, p_j)
        nDTW = exp(-DTW / (|R| t)),   SDTW = SR * nDTW

    Rules where the official programs disagree or fail: immediate repetitions (turning on the spot) are
    dropped first; an end at exactly the radius is a success only with ``inclusive``, in SDTW as in SR; of
    several goals the one nearest to the agent's end counts (of equals the last); CLS of two paths of length 0
    is their coverage.

    Args:
        world: the graphs.
        scans: N scans.
        paths: N agents' paths.
        references: N annotated paths; they must start where the agent does.
        goals: N lists of goals.
        names: N names for messages.
        success_radius: metres.
        inclusive: whether an end at exactly the radius is a success (HANNA) or not (R2R, NDH).
        threshold: threshold ``t`` of CLS and nDTW, metres.

    Returns:
        The metrics of each item.

    Raises:
        DataError: naming the item, for an unknown viewpoint, an empty path, a wrong start, a hop over a
            non-edge, an item without goal, or a goal that cannot be reached.
        ValueError: if the numbers of items differ.

    Source: SPL, arXiv 1807.06757, equation 1; CLS, arXiv 1905.12255; nDTW and SDTW, arXiv 1907.05446.
    """
    count = len(scans)
    names = [f"item {i}" for i in range(count)] if names is None else names
    if not count == len(paths) == len(references) == len(goals) == len(names):
        raise ValueError(
            f"{count} scans, {len(paths)} paths, {len(references)} references, {len(goals)} goals and "
            f"{len(names)} names; expected the same number of each"
        )
    if not count:  # numpy has no maximum of nothing
        empty = np.zeros(0)
        return PathMetrics(*[empty] * len(PathMetrics._fields))
    agent, annotated, targets = (
        _pad([_locate(world, *row, what) for row in zip(scans, part, names, strict=True)])
        for part, what in ((paths, "path"), (references, "annotated path"), (goals, "goals"))
    )
    distances = _Distances(world, scans)
    _check_hops(world, distances, agent, scans, names)
    _check_starts(world, agent, annotated, scans, names)

    steps = distances(agent.nodes[:, :-1], agent.nodes[:, 1:])
    length = _total(steps)
    final = distances(agent.nodes[:, -1:], targets.nodes)
    # argmin of the reversed row: the last of equally near goals.
    last_best = final.shape[1] - 1 - np.argmin(final[:, ::-1], axis=1)
    nearest = np.take_along_axis(targets.nodes, last_best[:, None], axis=1)
    shortest = distances(agent.nodes[:, :1], nearest)[:, 0]
    if not np.isfinite(shortest).all():
        lost = int(np.nonzero(~np.isfinite(shortest))[0][0])
        raise DataError(f"{names[lost]}: unreachable goal in scan {scans[lost]!r}: no path from the start")
    error = final.min(axis=1)
    # All pairs of path and goals; padding repeats the last viewpoint and changes no minimum.
    oracle = distances(agent.nodes[:, :, None], targets.nodes[:, None, :]).min(axis=(1, 2))
    inside = np.less_equal if inclusive else np.less
    success = inside(error, success_radius).astype(np.float64)
    # If start is goal, the ratio is 0 / TL: an agent that stays walked perfectly, one that left did not.
    efficiency = shortest / np.where(shortest > 0, np.maximum(shortest, length), 1.0)
    efficiency = np.where(shortest > 0, efficiency, length == 0)
    # (N, R, P) distances between annotated and walked viewpoints, for CLS and for the warping.
    gaps = distances(annotated.nodes[:, :, None], agent.nodes[:, None, :])
    ndtw = np.exp(-_warp(gaps, annotated.counts, agent.counts) / (annotated.counts * threshold))
    return PathMetrics(
        length,
        error,
        oracle,
        success,
        inside(oracle, success_radius).astype(np.float64),
        success * efficiency,
        _coverage(gaps, annotated, length, distances, threshold),
        ndtw,
        success * ndtw,
    )


def _total(values: np.ndarray) -> np.ndarray:
    """Add up rows from left to right, so that padding with zeros does not change a bit of a sum."""
    # np.sum adds in pairs, which depend on the width: scores would change with the longest path of a batch.
    if not values.shape[1]:
        return np.zeros(len(values))
    return np.cumsum(values, axis=1)[:, -1]


def _locate(world: NavWorld, scan: str, path: Sequence[str], name: str, what: str) -> list[int]:
    """Return the numbers of viewpoints without immediate repetitions, or raise an error naming the item."""
    if not path:
        raise DataError(f"{name}: {what} is empty")
    try:
        here = world.scan(scan)
        try:
            nodes = [here.index[viewpoint] for viewpoint in path]
        except KeyError as error:
            here.locate(error.args[0])  # raises a DataError that says why there is none
            raise
        return [node for node, _ in groupby(nodes)]
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def _check_hops(
    world: NavWorld, distances: _Distances, agent: _Rows, scans: Sequence[str], names: Sequence[str]
) -> None:
    """Raise DataError for a move between viewpoints that are not neighbours."""
    a, b = agent.nodes[:, :-1], agent.nodes[:, 1:]
    jumps = (a != b) & ~distances.edges[distances.flat(a, b)]
    if jumps.any():
        row, step = np.argwhere(jumps)[0]
        scan = world.scan(scans[row])
        raise DataError(
            f"{names[row]}: step {step + 1} goes from {scan.viewpoints[a[row, step]]!r} to "
            f"{scan.viewpoints[b[row, step]]!r}, and scan {scan.name!r} has no such edge"
        )


def _check_starts(
    world: NavWorld, agent: _Rows, annotated: _Rows, scans: Sequence[str], names: Sequence[str]
) -> None:
    """Raise DataError for an agent's path that starts elsewhere than the annotated one."""
    wrong = agent.nodes[:, 0] != annotated.nodes[:, 0]
    if wrong.any():
        row = int(np.nonzero(wrong)[0][0])
        viewpoints = world.scan(scans[row]).viewpoints
        raise DataError(
            f"{names[row]}: path starts at {viewpoints[agent.nodes[row, 0]]!r}; expected the start of the "
            f"annotated path, {viewpoints[annotated.nodes[row, 0]]!r}"
        )


def _coverage(
    gaps: np.ndarray, annotated: _Rows, length: np.ndarray, distances: _Distances, threshold: float
) -> np.ndarray:
    """Return CLS (N,); the equations are in `measure_paths`."""
    # Unlike a minimum, a mean counts padding, so it is masked out here.
    real = np.arange(gaps.shape[1]) < annotated.counts[:, None]
    covered = _total(np.where(real, np.exp(-gaps.min(axis=2) / threshold), 0.0)) / annotated.counts
    expected = covered * _total(distances(annotated.nodes[:, :-1], annotated.nodes[:, 1:]))
    total = expected + np.abs(expected - length)  # 0 only if both paths have length 0
    return covered * np.where(total > 0, expected / np.where(total > 0, total, 1.0), 1.0)


def _warp(gaps: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the cost of dynamic time warping (N,) between the first ``rows`` and the first ``columns``.

    ::

        cost[i, j] = gaps[i, j] + min(cost[i-1, j], cost[i, j-1], cost[i-1, j-1])

    Args:
        gaps: (N, R, P) distances.
        rows: (N,) numbers of real rows.
        columns: (N,) numbers of real columns.
    """
    count, height, width = gaps.shape
    gaps = np.ascontiguousarray(gaps.transpose(1, 2, 0))  # the loops go over cells, each for all items
    # One row of the table is kept. Column 0 is a border: infinite, but for the start of the alignment.
    above = np.full((width + 1, count), np.inf)
    above[0] = 0.0
    cost = np.empty(count)
    items = np.arange(count)
    for i in range(height):
        here = np.full((width + 1, count), np.inf)
        best = np.minimum(above[1:], above[:-1])  # of the row above, for all columns at once
        for j in range(width):
            here[j + 1] = gaps[i, j] + np.minimum(best[j], here[j])
        ends = rows == i + 1  # items whose path ends here: the padding below must not count
        cost[ends] = here[columns[ends], items[ends]]
        above = here
    return cost
