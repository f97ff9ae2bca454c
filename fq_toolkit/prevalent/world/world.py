"""NavWorld: the navigation graphs of several scans, each read when it is first needed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fq_toolkit.prevalent.files import DataError, make_folder
from fq_toolkit.prevalent.world import connectivity
from fq_toolkit.prevalent.world.scan import Scan
from fq_toolkit.training.atomic import write_atomic
from fq_toolkit.training.config import nearest
from fq_toolkit.training.errors import require

if TYPE_CHECKING:
    import networkx


class NavWorld:
    """Navigation graphs by scan, without a simulator.

    Build one with `from_connectivity` (Matterport files), `from_networkx` or `MiniWorld`; the constructor
    takes existing scans.

    Args:
        scans: the scans.

    Raises:
        DataError: if two have the same name.

    Example:
        >>> from fq_toolkit.prevalent import MiniWorld
        >>> world = MiniWorld(0)
        >>> name = world.names[0]
        >>> a, b = world.scan(name).viewpoints[:2]
        >>> len(world.shortest_path(name, a, b)) >= 2
        True
    """

    def __init__(self, scans: Iterable[Scan] = ()) -> None:
        self._scans: dict[str, Scan] = {}
        for scan in scans:
            if scan.name in self._scans:
                raise DataError(f"scan {scan.name!r} is given twice")
            self._scans[scan.name] = scan
        self._names = tuple(self._scans)
        self._load: Callable[[str], Scan] | None = None

    @classmethod
    def from_connectivity(cls, folder: str | Path, scans: Sequence[str] | None = None) -> "NavWorld":
        """Build a world from Matterport connectivity files; a scan is parsed when it is first needed.

        Args:
            folder: folder of ``SCAN_connectivity.json`` files.
            scans: names; by default those in ``scans.txt``, or else all files.

        Raises:
            DataError: if the folder or the file of a scan is missing.
        """
        folder = Path(folder)
        if isinstance(scans, str):
            raise TypeError(f"scans must be a list of names, got the string {scans!r}; write [{scans!r}]")
        world = NavWorld()  # not cls(): MiniWorld's constructor would generate buildings
        world._names = tuple(dict.fromkeys(connectivity.list_scans(folder) if scans is None else scans))
        for name in world._names:  # a missing file is found now, not hours into a run
            if not connectivity.connectivity_path(folder, name).exists():
                raise DataError(f"scan {name!r} is missing: {connectivity.connectivity_path(folder, name)}")
        world._load = partial(connectivity.read_scan, folder)
        return world

    @classmethod
    def from_networkx(cls, graphs: "Mapping[str, networkx.Graph]") -> "NavWorld":
        """Build a world from networkx graphs, undirected or with both directions of every edge.

        Args:
            graphs: scan -> graph; its nodes are strings and have a ``position`` of three numbers, in metres.

        Raises:
            DataError: for a node without a position, or an edge in only one direction.

        Example:
            >>> import networkx
            >>> graph = networkx.Graph([("a", "b")])
            >>> networkx.set_node_attributes(graph, {"a": (0, 0, 0), "b": (0, 3, 0)}, "position")
            >>> NavWorld.from_networkx({"flat": graph}).distance("flat", "a", "b")
            3.0
        """
        scans = []
        for name, graph in graphs.items():
            nodes = list(graph.nodes)
            index = {node: i for i, node in enumerate(nodes)}
            positions = np.zeros((len(nodes), 3))
            for i, node in enumerate(nodes):
                position = graph.nodes[node].get("position")
                if not isinstance(node, str) or position is None or np.shape(position) != (3,):
                    raise DataError(
                        f"scan {name!r}: node {node!r} must be a string with a position of 3 numbers, "
                        f"got position {position!r}"
                    )
                positions[i] = position
            adjacent = np.zeros((len(nodes), len(nodes)), dtype=bool)
            for a, b in graph.edges:  # of an undirected graph each is listed once
                adjacent[index[a], index[b]] = True
                if not graph.is_directed():
                    adjacent[index[b], index[a]] = True
            np.fill_diagonal(adjacent, False)  # a loop is no move
            scans.append(Scan(name, nodes, positions, adjacent))
        return NavWorld(scans)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of all scans, read or not."""
        return self._names

    def __repr__(self) -> str:
        return f"{type(self).__name__}(scans={len(self.names)}, read={len(self._scans)})"

    def scan(self, name: str) -> Scan:
        """Return a scan, reading it if necessary.

        Raises:
            DataError: if the world has none of that name, or its file is damaged.
        """
        if name not in self._scans:
            if name not in self._names or self._load is None:
                # The first names are enough for a suggestion; comparing with thousands would take seconds.
                raise DataError(f"the world has no scan {name!r}; {nearest(name, self._names[:999])}")
            self._scans[name] = self._load(name)
        return self._scans[name]

    def distance(self, scan: str, start: str, goal: str) -> float:
        """Return the length of the shortest path in metres; infinite where there is none.

        Raises:
            DataError: for an unknown scan or viewpoint.
        """
        here = self.scan(scan)
        return float(here.distances[here.locate(start), here.locate(goal)])

    def shortest_path(self, scan: str, start: str, goal: str) -> list[str]:
        """Return the viewpoints of a shortest path, both ends included.

        Raises:
            DataError: for an unknown scan or viewpoint, or where there is no path.
        """
        here = self.scan(scan)
        return [here.viewpoints[i] for i in here.shortest_path(here.locate(start), here.locate(goal))]

    def heading(self, scan: str, viewpoint: str, neighbor: str) -> float:
        """Return the direction from one viewpoint to a neighbour, radians in (-pi, pi] clockwise from +y.

        Raises:
            DataError: for an unknown scan or viewpoint, or where there is no edge.
        """
        here = self.scan(scan)
        row = here.locate(viewpoint)
        return float(here.headings[row, here.slot(row, here.locate(neighbor))])

    def to_networkx(self, scan: str) -> "networkx.Graph":
        """Return a scan as a networkx graph with ``position`` (3,) on nodes and ``weight`` (metres) on edges.

        Raises:
            DataError: for an unknown scan.
            MissingExtraError: without networkx.
        """
        networkx: Any = require("networkx", purpose="the graph of a scan", extra="vln")
        here = self.scan(scan)
        graph = networkx.Graph(name=scan)
        for viewpoint, position in zip(here.viewpoints, here.positions, strict=True):
            graph.add_node(viewpoint, position=position)
        for i, slot in zip(*np.nonzero(here.mask), strict=True):
            graph.add_edge(
                here.viewpoints[i],
                here.viewpoints[here.neighbors[i, slot]],
                weight=float(here.lengths[i, slot]),
            )
        return graph

    def to_connectivity_json(self, folder: str | Path) -> list[Path]:
        """Write the world as connectivity files and scans.txt, for `from_connectivity` and other programs.

        Only what the graph needs is written: rotations are the identity, excluded viewpoints are left out.

        Args:
            folder: created if it does not exist.

        Returns:
            The files of the scans.

        Raises:
            RunError: if something cannot be written.
        """
        folder = make_folder(folder)
        files = [connectivity.write_scan(self.scan(name), folder) for name in self.names]
        write_atomic(folder / "scans.txt", "".join(f"{name}\n" for name in self.names).encode())
        return files
