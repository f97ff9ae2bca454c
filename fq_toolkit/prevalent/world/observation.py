"""Observations of a batch of agents: small arrays at once, features on request."""

from typing import Any, NamedTuple

import numpy as np
import torch

from fq_toolkit.prevalent.world.angles import STEP, Layout, angle_features
from fq_toolkit.prevalent.world.features import FeatureStore
from fq_toolkit.prevalent.world.items import NavItem
from fq_toolkit.prevalent.world.tables import WorldTables


class EnvTables(NamedTuple):
    """The tables from which an environment and its observations gather.

    names: (scan, viewpoint) of each node.
    world: the graph tables.
    view_angles: float32 (12, 36, angle_dim).
    rows: int64 (N,), row of each node in the features; None without features.
    """

    names: list[tuple[str, str]]
    world: WorldTables
    view_angles: Any
    rows: Any
    features: FeatureStore | None
    layout: Layout
    angle_dim: int
    device: torch.device | None


class Observation:
    """One state of a batch of B agents; A is 1 (stop) + the largest number of neighbours.

    Attributes:
        items: the B tasks.
        node: int64 (B,), number of the viewpoint in the environment's tables.
        view: int64 (B,), current view, 0 to 35.
        ended: bool (B,), which agents have stopped.
        distance: float64 (B,) metres to the nearest goal.
        teacher: int64 (B,), the teacher's action; -1 for a stopped agent or an item without goal.

    All arrays are numpy arrays or tensors, depending on the environment.
    """

    __slots__ = ("_tables", "distance", "ended", "items", "node", "teacher", "view")

    def __init__(
        self,
        tables: EnvTables,
        items: list[NavItem],
        node: Any,
        view: Any,
        ended: Any,
        distance: Any,
        teacher: Any,
    ) -> None:
        self._tables = tables
        self.items = items
        self.node, self.view, self.ended = node, view, ended
        self.distance, self.teacher = distance, teacher

    def __len__(self) -> int:
        return len(self.items)

    def _real(self, values: Any) -> Any:
        """Return integers as float64."""
        return values.astype(np.float64) if self._tables.device is None else values.double()

    @property
    def viewpoints(self) -> list[str]:
        """Return the names of the viewpoints."""
        return [self._tables.names[int(node)][1] for node in self.node]

    @property
    def heading(self) -> Any:
        """Return the heading of the camera, float64 (B,), in [0, 2 pi)."""
        return self._real(self.view % 12) * STEP

    @property
    def elevation(self) -> Any:
        """Return the elevation of the camera, float64 (B,)."""
        return self._real(self.view // 12 - 1) * STEP

    @property
    def action_mask(self) -> Any:
        """Return which actions are possible, bool (B, A); stop always is."""
        width = self._tables.world.target.shape[1]
        counts = self._tables.world.actions[self.node]  # real actions come first, then padding
        return self._arange(width) < counts[:, None]

    @property
    def candidate_views(self) -> Any:
        """Return the view that shows each neighbour, int64 (B, A); -1 for stop and padding."""
        return self._tables.world.views[self.node]

    @property
    def candidate_headings(self) -> Any:
        """Return the heading of each neighbour relative to the agent's, float64 (B, A), in [-pi, pi)."""
        return (self._tables.world.headings[self.node] - self.heading[:, None] + np.pi) % (2 * np.pi) - np.pi

    @property
    def candidate_elevations(self) -> Any:
        """Return the absolute elevation of each neighbour, float64 (B, A)."""
        return self._tables.world.elevations[self.node]

    def _arange(self, count: int) -> Any:
        """Return 0 .. count - 1 where the other arrays are."""
        return (
            np.arange(count)
            if self._tables.device is None
            else torch.arange(count, device=self._tables.device)
        )

    def _gather(self, views: Any) -> Any:
        """Return features (B, 36, D), or (B, M, D) of the given views."""
        tables = self._tables
        if tables.features is None:
            raise ValueError("the environment has no features: BatchedNavEnv(world, features)")
        rows = tables.rows[self.node]
        if tables.device is None:
            return tables.features.panorama(rows) if views is None else tables.features.views(rows, views)
        resident = tables.features.resident(tables.device)
        if resident is not None:  # gathered on the device: no copy from the host in a step
            return (resident[rows] if views is None else resident[rows[:, None], views]).float()
        numbers = rows.cpu().numpy()  # features too large for the device are read on the host
        if views is None:
            made = tables.features.panorama(numbers)
        else:
            made = tables.features.views(numbers, views.cpu().numpy())
        return torch.from_numpy(made).to(tables.device)

    def _join(self, features: Any, angles: Any) -> Any:
        """Return features with their angles behind them."""
        if self._tables.device is None:
            return np.concatenate([features, angles], axis=-1)
        return torch.cat([features, angles], dim=-1)

    def view_features(self) -> Any:
        """Return all 36 views in absolute order, angles relative to the heading, float32 (B, 36, D + angle).

        Raises:
            ValueError: if the environment has no features.
        """
        # Only the heading matters: elevations of views are absolute.
        return self._join(self._gather(None), self._tables.view_angles[self.view % 12])

    def candidate_features(self) -> Any:
        """Return the view and the relative direction of each neighbour, float32 (B, A, D + angle).

        Rows of stop and of padding are zero.

        Raises:
            ValueError: if the environment has no features.
        """
        views = self.candidate_views
        features = self._gather(views.clip(0))  # stop and padding (-1) read view 0 and are zeroed below
        angles = angle_features(
            self.candidate_headings,
            self.candidate_elevations,
            layout=self._tables.layout,
            dim=self._tables.angle_dim,
        )
        return self._join(features, angles) * (views >= 0)[..., None]
