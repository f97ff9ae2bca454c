"""MiniWorld: small generated buildings in which language can be grounded, in the formats of the real data.

The real images need a licence and a large download. Here everything that an agent must learn, which words go
with which views, is present in a world that trains in minutes.
"""

from pathlib import Path
from typing import Any

import numpy as np

from fq_toolkit.prevalent.data.annotations import r2r_items
from fq_toolkit.prevalent.files import write_json
from fq_toolkit.prevalent.miniworld.landmarks import LANDMARKS, describe_path, place_landmarks, view_pictures
from fq_toolkit.prevalent.world.features import FeatureStore
from fq_toolkit.prevalent.world.items import NavItem
from fq_toolkit.prevalent.world.paths import sample_paths
from fq_toolkit.prevalent.world.scan import Scan
from fq_toolkit.prevalent.world.world import NavWorld

_CELL = 5.0  # metres between the middles of neighbouring rooms
_STOREY = 0.8  # metres between levels of floors
_EYE = 1.5  # metres of the camera above the floor
# Where there is only one way to go, an agent needs no instruction: most rooms must leave a choice.
_MORE_DOORS = 0.8  # share of the walls outside the spanning tree that have a door
_CORRIDORS = 0.15  # share of the doors that have a viewpoint of their own


class MiniWorld(NavWorld):
    """Buildings of rooms and corridors on several levels, with a landmark at every viewpoint.

    A building is a grid of rooms, connected by a random spanning tree and some more doors. Each room has a
    viewpoint near its middle, some have a second one, and some doors have one too. A landmark is a fixed
    random vector in the view that shows it, the same in every world, so an agent that learns the meaning of
    words in some worlds can use it in others: worlds of another seed are unseen. Instructions name the
    landmark at the end of each edge of a shortest path; only some clauses say which way to turn, so neither
    the text nor the views suffice by themselves.

    Args:
        seed: seed of everything: equal seeds and settings give equal worlds.
        num_scans: number of buildings.
        rooms: rows and columns of the grid.
        feature_dim: width of the view features.
        noise: standard deviation of the noise in the features; landmarks have 1.
        turns: share of the clauses of an instruction that say which way to turn.

    Raises:
        ValueError: for settings below 1, negative noise, or a share outside [0, 1].

    Example:
        >>> world = MiniWorld(0)
        >>> item = world.items(1)[0]
        >>> item.instruction[:64]
        'toward the drum , then toward the statue , then to the aquarium '
        >>> item.path[0], len(item.path)
        ('mini0x1v014', 6)
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        num_scans: int = 2,
        rooms: tuple[int, int] = (3, 4),
        feature_dim: int = 64,
        noise: float = 0.1,
        turns: float = 0.25,
    ) -> None:
        rows, columns = rooms
        if min(num_scans, rows, columns, feature_dim) < 1 or noise < 0:
            raise ValueError(
                "num_scans, rooms and feature_dim must be at least 1 and noise at least 0, got "
                f"{num_scans}, {rooms}, {feature_dim}, {noise}"
            )
        if not 0 <= turns <= 1:
            raise ValueError(f"turns must be a share between 0 and 1, got {turns}")
        self.seed, self.feature_dim, self.noise, self.turns = seed, feature_dim, noise, turns
        # Streams by purpose (0 graphs, 1 landmarks, 2 features, 3 texts, 4 dialogs, 5 requests): more
        # instructions or another width leave the buildings as they are.
        super().__init__(
            _build(f"mini{seed}x{number}", np.random.default_rng([seed, number, 0]), rows, columns)
            for number in range(num_scans)
        )
        self.landmarks = {
            name: place_landmarks(self.scan(name), np.random.default_rng([seed, number, 1]))
            for number, name in enumerate(self.names)
        }

    def landmark(self, scan: str, viewpoint: str) -> str:
        """Return the word for the landmark at a viewpoint.

        Raises:
            DataError: for an unknown scan or viewpoint.
        """
        return LANDMARKS[self.landmarks[scan][self.scan(scan).locate(viewpoint)]]

    def features(self) -> FeatureStore:
        """Return the features of all views."""
        keys = [(name, viewpoint) for name in self.names for viewpoint in self.scan(name).viewpoints]
        parts = [
            view_pictures(
                self.scan(name),
                self.landmarks[name],
                self.feature_dim,
                self.noise,
                np.random.default_rng([self.seed, number, 2]),
            )
            for number, name in enumerate(self.names)
        ]
        return FeatureStore(keys, np.concatenate(parts))

    def annotations(self, count: int, *, seed: int = 0, instructions: int = 1) -> list[dict[str, Any]]:
        """Generate paths and instructions as items of an R2R file.

        Args:
            count: number of paths.
            seed: seed of the paths and of the wording.
            instructions: number of instructions per path.

        Returns:
            ``{path_id, scan, heading, path, distance, instructions}``.
        """
        generator = np.random.default_rng([self.seed, seed, 3])  # not the paths' own, see `__init__`
        records = []
        for number, (name, path) in enumerate(sample_paths(self, count, seed=seed)):
            scan = self.scan(name)
            steps = [scan.locate(viewpoint) for viewpoint in path]
            heading = round(float(generator.uniform(0, 2 * np.pi)), 3)
            records.append(
                {
                    "path_id": number,
                    "scan": name,
                    "heading": heading,
                    "path": path,
                    "distance": round(float(scan.distances[steps[0], steps[-1]]), 2),
                    "instructions": [
                        describe_path(scan, self.landmarks[name], steps, heading, generator, turns=self.turns)
                        for _ in range(instructions)
                    ],
                }
            )
        return records

    def items(self, count: int, *, seed: int = 0, instructions: int = 1) -> list[NavItem]:
        """Return the items of `annotations`."""
        records = self.annotations(count, seed=seed, instructions=instructions)
        return r2r_items(records, f"MiniWorld({self.seed})")

    def write(self, folder: str | Path, count: int, *, seed: int = 0, instructions: int = 3) -> Path:
        """Write the world in the form of the real data: connectivity files, features.npz and R2R.json.

        Args:
            folder: created if it does not exist.
            count: number of paths in R2R.json.
            seed: seed of the paths.
            instructions: number of instructions per path.

        Returns:
            The file of annotations.

        Raises:
            RunError: if something cannot be written.
        """
        folder = Path(folder)
        self.to_connectivity_json(folder)
        self.features().save_npz(folder / "features.npz")
        records = self.annotations(count, seed=seed, instructions=instructions)
        return write_json(folder / "R2R.json", records, indent=1)


def _build(name: str, generator: np.random.Generator, rows: int, columns: int) -> Scan:
    """Generate one building."""
    cells = [(row, column) for row in range(rows) for column in range(columns)]
    number = {cell: i for i, cell in enumerate(cells)}
    level = dict(zip(cells, generator.integers(0, 3, len(cells)), strict=True))
    positions = [
        _point(column * _CELL, row * _CELL, level[row, column] * _STOREY, generator) for row, column in cells
    ]
    edges = []
    for i, j in _doors(cells, number, generator):
        if generator.random() >= _CORRIDORS:  # a door between two rooms
            edges.append((i, j))
            continue
        # Others become a corridor: a viewpoint of its own between the rooms.
        middle = (positions[i] + positions[j]) / 2
        edges += [(i, len(positions)), (len(positions), j)]
        positions.append(middle + generator.uniform(-0.4, 0.4, 3) * (1, 1, 0))
    for i in range(len(cells)):
        if generator.random() < 0.5:  # a second viewpoint in a corner: a dead end
            corner = generator.choice([-1.0, 1.0], 2) * generator.uniform(1.0, 1.6, 2)
            edges.append((i, len(positions)))
            positions.append(positions[i] + np.array([*corner, 0.0]))
    adjacent = np.zeros((len(positions), len(positions)), dtype=bool)
    for i, j in edges:
        adjacent[i, j] = adjacent[j, i] = True
    names = [f"{name}v{i:03d}" for i in range(len(positions))]
    # Rounded to a tenth of a millimetre, so that the files stay readable.
    return Scan(name, names, np.round(np.array(positions), 4), adjacent)


def _point(x: float, y: float, floor: float, generator: np.random.Generator) -> np.ndarray:
    """Return a camera position near (x, y) on a floor."""
    return np.array([x, y, floor + _EYE]) + generator.uniform(-0.6, 0.6, 3) * (1, 1, 0.1)


def _doors(
    cells: list[tuple[int, int]], number: dict[tuple[int, int], int], generator: np.random.Generator
) -> list[tuple[int, int]]:
    """Choose which neighbouring rooms have a door: a random spanning tree, and some of the rest."""
    walls = [
        (number[row, column], number[other])
        for row, column in cells
        for other in ((row + 1, column), (row, column + 1))
        if other in number
    ]
    group = list(range(len(cells)))  # rooms with the same number are connected (Kruskal's algorithm)
    doors = []
    for wall in generator.permutation(len(walls)):
        i, j = walls[wall]
        if group[i] != group[j]:
            old, new = group[j], group[i]
            group = [new if entry == old else entry for entry in group]
            doors.append((i, j))
        elif generator.random() < _MORE_DOORS:
            doors.append((i, j))
    return doors
