"""Metrics written down item by item from their formulas, on networkx, to compare with."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import networkx


class Row(NamedTuple):
    """Metrics of one item."""

    TL: float
    NE: float
    OE: float
    SR: float
    OSR: float
    SPL: float
    CLS: float
    nDTW: float
    SDTW: float


def measure(
    graph: networkx.Graph,
    path: Sequence[str],
    reference: Sequence[str],
    goals: Sequence[str],
    radius: float = 3.0,
) -> Row:
    """Measure a path without repetitions."""
    distance = {node: networkx.single_source_dijkstra_path_length(graph, node) for node in graph}

    def far(a: str, b: str) -> float:
        return distance[a].get(b, math.inf)

    def length(nodes: Sequence[str]) -> float:
        return sum(graph.edges[a, b]["weight"] for a, b in pairwise(nodes))

    goal = min(reversed(goals), key=lambda g: far(path[-1], g))
    taken, shortest, error = length(path), far(path[0], goal), far(path[-1], goal)
    success = float(error < radius)
    efficiency = shortest / max(shortest, taken) if shortest else float(taken == 0)
    oracle = min(far(p, g) for p in path for g in goals)
    coverage = sum(math.exp(-min(far(r, p) for p in path) / 3) for r in reference) / len(reference)
    expected = coverage * length(reference)
    fit = expected / (expected + abs(expected - taken)) if expected or taken else 1.0
    table = {(0, 0): 0.0}
    for i in range(1, len(reference) + 1):
        for j in range(1, len(path) + 1):
            before = min(table.get(k, math.inf) for k in ((i - 1, j), (i, j - 1), (i - 1, j - 1)))
            table[i, j] = far(reference[i - 1], path[j - 1]) + before
    ndtw = math.exp(-table[len(reference), len(path)] / (3 * len(reference)))
    return Row(
        taken,
        error,
        oracle,
        success,
        float(oracle < radius),
        success * efficiency,
        coverage * fit,
        ndtw,
        success * ndtw,
    )
