"""The navigation graph of one building as arrays: edges, directions, views and shortest paths.

For a viewpoint at ``p`` and a neighbour at ``q``, with ``(dx, dy, dz) = q - p`` and ``z`` up::

    heading   = atan2(dx, dy)                 clockwise from +y
    elevation = atan2(dz, sqrt(dx^2 + dy^2))  positive upwards
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from fq_toolkit.prevalent.files import DataError
from fq_toolkit.prevalent.world.angles import nearest_view
from fq_toolkit.training.errors import require


class Scan:
    """The navigation graph of one building.

    The slots of a viewpoint are its neighbours in the order of the viewpoints. Rows are padded to the largest
    degree with the viewpoint itself.

    Args:
        name: name of the scan.
        viewpoints: n names.
        positions: (n, 3) metres, z up.
        unobstructed: bool (n, n), symmetric, with a false diagonal.
        excluded: names of viewpoints that the source file contains but excludes from the graph.
        source: file or object that the scan comes from, for error messages.

    Attributes:
        neighbors: int64 (n, degree).
        mask: bool (n, degree), true for real slots.
        headings: float64 (n, degree), direction of each neighbour, clockwise from +y, in (-pi, pi].
        elevations: float64 (n, degree).
        lengths: float64 (n, degree) metres, infinite for padding.
        views: int64 (n, degree), which of the 36 views shows the neighbour best.

    Raises:
        DataError: for repeated names, positions that are not finite, asymmetric edges, or edges of length 0.

    Example:
        >>> scan = Scan("s", ["a", "b"], np.array([[0.0, 0, 0], [0, 2, 0]]), ~np.eye(2, dtype=bool))
        >>> scan.neighbors.tolist(), scan.lengths.tolist(), scan.views.tolist()
        ([[1], [0]], [[2.0], [2.0]], [[12], [18]])

    Directions are computed from float32 positions, as in the simulator; lengths and distances from float64
    positions, as in the official metrics.
    """

    def __init__(
        self,
        name: str,
        viewpoints: Sequence[str],
        positions: np.ndarray,
        unobstructed: np.ndarray,
        *,
        excluded: Sequence[str] = (),
        source: str = "",
    ) -> None:
        self.name = name
        self.source = source or f"scan {name!r}"
        self.viewpoints = tuple(viewpoints)
        self.excluded = frozenset(excluded)
        self.index = {viewpoint: i for i, viewpoint in enumerate(self.viewpoints)}
        count = len(self.viewpoints)
        if len(self.index) != count:
            twice = next(v for i, v in enumerate(self.viewpoints) if self.index[v] != i)
            raise DataError(f"{self.source}: viewpoint {twice!r} occurs twice")
        self.positions = np.asarray(positions, dtype=np.float64).reshape(count, 3)
        if not np.isfinite(self.positions).all():
            lost = self.viewpoints[int(np.nonzero(~np.isfinite(self.positions).all(axis=1))[0][0])]
            raise DataError(f"{self.source}: the position of viewpoint {lost!r} is not finite")
        self.adjacent = np.asarray(unobstructed, dtype=bool)
        self._check_edges()
        self._fill_slots()

    def _check_edges(self) -> None:
        """Raise DataError unless the edges are symmetric and have a length."""
        # Shortest paths and the pretraining's labels assume that an agent can always walk back.
        oneway = np.argwhere(self.adjacent & ~self.adjacent.T)
        if len(oneway):
            a, b = (self.viewpoints[i] for i in oneway[0])
            raise DataError(
                f"{self.source}: asymmetric edge: {a!r} leads to {b!r}, but {b!r} does not lead to {a!r} "
                f"({len(oneway)} such edges)"
            )
        i, j = np.nonzero(self.adjacent)
        # In float32, because that is what directions are computed from: atan2(0, 0) is no direction.
        same = np.nonzero(
            (self.positions[i].astype(np.float32) == self.positions[j].astype(np.float32)).all(1)
        )
        if len(same[0]):
            a, b = self.viewpoints[i[same[0][0]]], self.viewpoints[j[same[0][0]]]
            raise DataError(f"{self.source}: the neighbours {a!r} and {b!r} have the same position")

    def _fill_slots(self) -> None:
        """Derive the padded arrays."""
        count = len(self.viewpoints)
        degrees = self.adjacent.sum(axis=1)
        width = max(1, int(degrees.max(initial=0)))
        i, j = np.nonzero(self.adjacent)  # row by row, so the edges of a viewpoint follow each other
        slot = np.arange(len(i)) - np.repeat(np.cumsum(degrees) - degrees, degrees)
        self.neighbors = np.repeat(np.arange(count)[:, None], width, axis=1)
        self.neighbors[i, slot] = j
        self.mask = np.arange(width) < degrees[:, None]
        # The simulator subtracts in float32 and takes the angles in float64; so borders between views agree.
        single = self.positions.astype(np.float32)
        offset = (single[j] - single[i]).astype(np.float64)
        heading = np.arctan2(offset[:, 0], offset[:, 1])
        elevation = np.arctan2(offset[:, 2], np.hypot(offset[:, 0], offset[:, 1]))
        self.headings, self.elevations = np.zeros((2, count, width))
        self.headings[i, slot], self.elevations[i, slot] = heading, elevation
        self.views = np.zeros((count, width), dtype=np.int64)
        self.views[i, slot] = nearest_view(heading, elevation)
        self.lengths = np.full((count, width), np.inf)
        self.lengths[i, slot] = np.sqrt(np.square(self.positions[j] - self.positions[i]).sum(axis=1))

    def __len__(self) -> int:
        return len(self.viewpoints)

    def __repr__(self) -> str:
        return f"Scan({self.name!r}, viewpoints={len(self)}, edges={int(self.adjacent.sum()) // 2})"

    def locate(self, viewpoint: str) -> int:
        """Return the number of a viewpoint.

        Raises:
            DataError: if the scan has none of that name, or excludes it.
        """
        if viewpoint not in self.index:
            if viewpoint in self.excluded:
                raise DataError(f"viewpoint {viewpoint!r} of scan {self.name!r} is excluded from the graph")
            raise DataError(f"scan {self.name!r} has no viewpoint {viewpoint!r}; it has {len(self)} others")
        return self.index[viewpoint]

    def slot(self, here: int, there: int) -> int:
        """Return the slot of a neighbour.

        Args:
            here: number of a viewpoint.
            there: number of its neighbour.

        Raises:
            DataError: if there is no such edge.
        """
        slots = np.nonzero((self.neighbors[here] == there) & self.mask[here])[0]  # padding repeats `here`
        if not len(slots):
            raise DataError(
                f"scan {self.name!r}: there is no edge from {self.viewpoints[here]!r} to "
                f"{self.viewpoints[there]!r}"
            )
        return int(slots[0])

    @cached_property
    def distances(self) -> np.ndarray:
        """Return the lengths of all shortest paths, float64 (n, n) metres; infinite where there is none."""
        sparse = require("scipy.sparse", purpose="finding shortest paths", extra="vln")
        csgraph = require("scipy.sparse.csgraph", purpose="finding shortest paths", extra="vln")
        i, slot = np.nonzero(self.mask)
        edges = sparse.csr_array(
            (self.lengths[i, slot], (i, self.neighbors[i, slot])), shape=(len(self),) * 2
        )
        return csgraph.shortest_path(edges, method="D", directed=True)

    def next_slots(self, remaining: np.ndarray) -> np.ndarray:
        """Return, for every viewpoint, the slot of the first step on a shortest path.

        Args:
            remaining: (n,) distance of each viewpoint to the goal or to the nearest of several goals.

        Returns:
            int64 (n,); among equally short paths the lowest slot; -1 at a goal and where no goal can be
            reached.
        """
        # Length of the path over each slot; padding has infinite length and never wins.
        ways = self.lengths + remaining[self.neighbors]
        slots = np.argmin(ways, axis=1)
        return np.where((remaining > 0) & np.isfinite(remaining), slots, -1)

    def shortest_path(self, start: int, goal: int) -> list[int]:
        """Return the viewpoints of a shortest path, both ends included.

        Raises:
            DataError: if there is none.
        """
        remaining = self.distances[:, goal]
        if not np.isfinite(remaining[start]):
            raise DataError(
                f"scan {self.name!r}: {self.viewpoints[goal]!r} cannot be reached from "
                f"{self.viewpoints[start]!r}"
            )
        path = [start]
        while path[-1] != goal:
            here = path[-1]
            path.append(
                int(self.neighbors[here, np.argmin(self.lengths[here] + remaining[self.neighbors[here]])])
            )
        return path
