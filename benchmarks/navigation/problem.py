"""What the navigation cases work on: how many agents, scans, paths or items, in which graphs."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.contender import Problem

#: The two kinds of graphs: a small generated world for smoke tests, and what is measured.
MINI, REAL = "miniworld", "graphs"


@dataclass(frozen=True)
class GraphShape:
    """``batch`` agents, scans, paths or items, each with ``steps`` steps; ``layout`` says which graphs.

    The names of the fields that results files have are those of the quantizer's shapes: ``rows`` is what is
    counted, and there are neither channels nor codes.
    """

    name: str
    batch: int
    steps: int = 1
    layout: str = REAL
    dim: int = 0
    num_codes: int = 0

    @property
    def rows(self) -> int:
        """What is counted: steps of agents, scans, time steps, items."""
        return self.batch * self.steps

    @property
    def label(self) -> str:
        """Name and count, for tables."""
        return f"{self.name} (N {self.rows})"


@dataclass(frozen=True)
class GraphProblem(Problem[GraphShape]):
    """A shape; its graphs and items are made once for all problems (`benchmarks.navigation.data`)."""


# Episodes of 8 steps and paths of 6 viewpoints, as those of R2R are.
ENV_SHAPES = (GraphShape("B 1", 1, 8), GraphShape("B 64", 64, 8), GraphShape("B 1024", 1024, 8))
ENV_QUICK = (GraphShape("tiny B 3", 3, 4, MINI),)
WORLD_SHAPES = (GraphShape("90 scans", 90), GraphShape("largest scan", 1))
WORLD_QUICK = (GraphShape("tiny 2 scans", 2, layout=MINI), GraphShape("tiny scan", 1, layout=MINI))
TRIPLET_SHAPES = (GraphShape("50 paths", 50, 6),)
TRIPLET_QUICK = (GraphShape("tiny 2 paths", 2, 6, MINI),)
METRIC_SHAPES = (GraphShape("2349 items", 2349),)
METRIC_QUICK = (GraphShape("tiny 5 items", 5, layout=MINI),)
