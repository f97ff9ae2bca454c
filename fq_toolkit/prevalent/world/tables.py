"""Flat tables over the viewpoints of several scans, from which a batched environment gathers."""

from typing import Any, NamedTuple

import numpy as np

from fq_toolkit.prevalent.world.scan import Scan
from fq_toolkit.prevalent.world.world import NavWorld


class WorldTables(NamedTuple):
    """One row per viewpoint and one column per action: 0 stops, k goes to the k-th neighbour.

    target: int64 (N, A), where the action leads; 0 and padding stay at the viewpoint.
    actions: int64 (N,), number of real actions, stop included.
    headings: float64 (N, A), direction of the neighbour; 0 for stop and padding.
    elevations: float64 (N, A), in the same way.
    views: int64 (N, A), the view that shows the neighbour; -1 for stop and padding.
    """

    target: Any
    actions: Any
    headings: Any
    elevations: Any
    views: Any


class TableBuilder:
    """Tables that grow when a scan is first needed; the rows of earlier scans keep their numbers.

    Args:
        world: the graphs.
    """

    def __init__(self, world: NavWorld) -> None:
        self._world = world
        self.offsets: dict[str, int] = {}
        self.names: list[tuple[str, str]] = []
        self._scans: list[Scan] = []

    def add(self, names: set[str]) -> bool:
        """Add scans and return whether any of them was new.

        Raises:
            DataError: for an unknown scan.
        """
        # Sorted: the order of a set of strings differs from process to process.
        new = [self._world.scan(name) for name in sorted(names - set(self.offsets))]
        for scan in new:
            self.offsets[scan.name] = len(self.names)
            self.names += [(scan.name, viewpoint) for viewpoint in scan.viewpoints]
            self._scans.append(scan)
        return bool(new)

    def build(self) -> WorldTables:
        """Build the tables of all scans that were added."""
        width = 1 + max(scan.mask.shape[1] for scan in self._scans)
        count = len(self.names)
        target = np.repeat(np.arange(count)[:, None], width, axis=1)  # stop and padding stay
        headings, elevations = np.zeros((2, count, width))
        views = np.full((count, width), -1)
        actions = np.ones(count, dtype=np.int64)
        for scan in self._scans:
            offset = self.offsets[scan.name]
            rows, columns = slice(offset, offset + len(scan)), slice(1, 1 + scan.mask.shape[1])
            # Neighbours are numbered within their scan; the offset makes them numbers of the whole table.
            target[rows, columns] = np.where(scan.mask, scan.neighbors + offset, target[rows, columns])
            headings[rows, columns] = scan.headings
            elevations[rows, columns] = scan.elevations
            views[rows, columns] = np.where(scan.mask, scan.views, -1)
            actions[rows] += scan.mask.sum(axis=1)
        return WorldTables(target, actions, headings, elevations, views)
