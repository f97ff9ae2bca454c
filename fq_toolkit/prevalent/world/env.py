"""BatchedNavEnv: many navigation episodes at once.

A step is a fixed number of gathers from flat tables, so its time hardly depends on the batch. Everything that
needs a graph search (distances, the teacher) is looked up when an episode starts.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from fq_toolkit.prevalent.files import DataError
from fq_toolkit.prevalent.world.angles import (
    VIEW_ELEVATIONS,
    VIEW_HEADINGS,
    Layout,
    check_layout,
    snap,
    view_angle_features,
)
from fq_toolkit.prevalent.world.features import FeatureStore
from fq_toolkit.prevalent.world.items import NavItem, unreachable
from fq_toolkit.prevalent.world.observation import EnvTables, Observation
from fq_toolkit.prevalent.world.scan import Scan
from fq_toolkit.prevalent.world.tables import TableBuilder
from fq_toolkit.prevalent.world.world import NavWorld

_KEPT_GOALS = 20000  # goals whose distances are remembered: more than R2R has, tens of megabytes


class Step(NamedTuple):
    """Result of one step: the new observation, the reward float64 (B,), and which agents have stopped."""

    observation: Observation
    reward: Any
    done: Any


class _Goal(NamedTuple):
    """Distance and first action from each viewpoint of a scan to a goal, or to the nearest of several."""

    distance: np.ndarray
    action: np.ndarray


class BatchedNavEnv:
    """Navigation episodes in a batch; every array has the batch as its first axis.

    Actions are numbers: 0 stops, k moves to the k-th neighbour of the viewpoint (the order of
    ``Scan.neighbors``). Moving turns the camera to the one of the 36 views that shows the target. A stopped
    agent never moves again, whatever its later actions.

    With ``d`` the distance to the nearest goal, the reward of a step is::

        move: sign(d before - d after)        stop: +2 if d < success_radius, else -2

    The teacher's action is the first step on a shortest path to the nearest goal, 0 at a goal, and -1 for a
    stopped agent. Items without goals have distance NaN, teacher -1 and reward 0.

    Args:
        world: the graphs.
        features: features of the views; only `Observation.candidate_features` and `view_features` need them.
        device: None for numpy arrays; a torch device for tensors on it.
        success_radius: metres; stopping succeeds strictly inside.
        layout: layout of the angle features.
        angle_dim: width of the angle features.

    Raises:
        ValueError: for an unknown layout or width.

    Example:
        >>> from fq_toolkit.prevalent import MiniWorld
        >>> world = MiniWorld(0)
        >>> env = BatchedNavEnv(world, world.features())
        >>> obs = env.reset(world.items(4))
        >>> obs, reward, done = env.step(obs.teacher)
        >>> reward.tolist(), done.tolist()
        ([1.0, 1.0, 1.0, 1.0], [False, False, False, False])
        >>> obs.candidate_features().shape[:2] == obs.action_mask.shape
        True

    Source: semantics of Matterport3DSimulator; rewards of R2R-EnvDrop, arXiv 1904.04195, appendix.
    """

    def __init__(
        self,
        world: NavWorld,
        features: FeatureStore | None = None,
        *,
        device: str | torch.device | None = None,
        success_radius: float = 3.0,
        layout: Layout = "interleaved",
        angle_dim: int = 128,
    ) -> None:
        check_layout(layout, angle_dim)
        if not success_radius > 0:
            raise ValueError(f"success_radius must be positive, got {success_radius}")
        self.world = world
        self.features = features
        self.device = None if device is None else torch.device(device)
        self.success_radius = success_radius
        self.layout: Layout = layout
        self._xp: Any = np if device is None else torch
        self._builder = TableBuilder(world)
        self._goals: OrderedDict[tuple[str, tuple[str, ...]], _Goal] = OrderedDict()
        self._angle_dim = angle_dim
        self._tables: EnvTables | None = None
        self._items: list[NavItem] = []
        self._history: list[tuple[Any, Any, Any]] = []

    def _put(self, array: np.ndarray) -> Any:
        """Return an array in the kind this environment uses: numpy, or a tensor on its device."""
        return array if self.device is None else torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _refresh_tables(self, scans: set[str]) -> EnvTables:
        """Return tables that cover these scans and all earlier ones."""
        # Rebuilt only when a new scan appears: after the first epoch a reset copies nothing to the device.
        if self._builder.add(scans) or self._tables is None:
            tables = self._builder.build()
            rows = None
            if self.features is not None:
                rows = self._put(self.features.rows(self._builder.names))
            self._tables = EnvTables(
                self._builder.names,
                type(tables)(*(self._put(table) for table in tables)),
                self._put(view_angle_features(layout=self.layout, dim=self._angle_dim)),
                rows,
                self.features,
                self.layout,
                self._angle_dim,
                self.device,
            )
        return self._tables

    def _goal(self, item: NavItem) -> _Goal:
        """Return the distance to the nearest goal and the teacher's action from every viewpoint."""
        key = (item.scan, item.goals)
        if key not in self._goals:
            scan = self.world.scan(item.scan)
            if item.goals:
                remaining = scan.distances[:, [scan.locate(goal) for goal in item.goals]].min(axis=1)
                action = 1 + scan.next_slots(remaining)  # next_slots is -1 at a goal, which makes "stop"
                action[~np.isfinite(remaining)] = -1
                self._goals[key] = _Goal(remaining, action)
            else:
                self._goals[key] = _Goal(np.full(len(scan), np.nan), np.full(len(scan), -1))
            if len(self._goals) > _KEPT_GOALS:  # the oldest goes
                self._goals.popitem(last=False)
        return self._goals[key]

    def _resolve(self, item: NavItem) -> tuple[Scan, int, _Goal]:
        """Return scan, start and goal of an item, or raise an error that names it."""
        try:
            scan = self.world.scan(item.scan)
            start, goal = scan.locate(item.start), self._goal(item)
        except DataError as error:
            raise DataError(f"item {item.instr_id!r}: {error}") from error
        if goal.distance[start] == np.inf:  # NaN, an item without goals, is allowed
            raise unreachable(item, f"item {item.instr_id!r}")
        return scan, start, goal

    def reset(self, items: Sequence[NavItem]) -> Observation:
        """Start one episode per item; headings and elevations are snapped to the 36 views.

        Args:
            items: B tasks, in any scans of the world.

        Returns:
            The first observation.

        Raises:
            TypeError: for anything but NavItems.
            ValueError: without items.
            DataError: for an unknown scan or viewpoint, an unreachable goal, or a viewpoint without features.
        """
        items = list(items)
        for item in items:
            if not isinstance(item, NavItem):
                raise TypeError(
                    f"reset takes NavItems, got {type(item).__name__}: load annotations with load_r2r, "
                    "load_ndh or load_hanna"
                )
        if not items:
            raise ValueError("reset needs at least one item")
        # All items are checked before the state changes: after an error the old episodes go on.
        scans, start, goals = zip(*(self._resolve(item) for item in items), strict=True)
        tables = self._refresh_tables({item.scan for item in items})
        offset = np.array([self._builder.offsets[scan.name] for scan in scans])
        # One row per episode over the viewpoints of its scan, laid flat: `goal_row + node` is the place of
        # the agent's viewpoint in it, so that a step needs one gather and no search.
        widest = max(map(len, scans))
        distance, action = np.full((len(items), widest), np.inf), np.full((len(items), widest), -1)
        for row, goal in enumerate(goals):
            distance[row, : len(goal.distance)] = goal.distance
            action[row, : len(goal.action)] = goal.action
        view = np.array([snap(item.heading, item.elevation)[2] for item in items])
        self._items = items
        self._goal_distance, self._goal_action = self._put(distance.ravel()), self._put(action.ravel())
        self._goal_row = self._put(np.arange(len(items)) * widest - offset)
        known = np.array([bool(item.goals) for item in items])
        self._has_goal = None if known.all() else self._put(known)  # None saves a `where` in each step
        self._node, self._view = self._put(np.array(start) + offset), self._put(view)
        self._ended = self._put(np.zeros(len(items), dtype=bool))
        self._distance = self._goal_distance[self._goal_row + self._node]
        self._target = tables.world.target.reshape(-1)
        self._views = tables.world.views.reshape(-1)
        self._width = tables.world.target.shape[1]
        self._history = [(self._node, self._view, self._ended)]
        return self._observe(tables)

    def _observe(self, tables: EnvTables) -> Observation:
        """Return the observation of the current state."""
        teacher = self._goal_action[self._goal_row + self._node]
        return Observation(
            tables,
            self._items,
            self._node,
            self._view,
            self._ended,
            self._distance,
            self._xp.where(self._ended, -1, teacher),
        )

    def step(self, actions: Any) -> Step:
        """Take one action per agent; those of stopped agents are ignored.

        Args:
            actions: int (B,), an array, tensor or list.

        Returns:
            (observation, reward, done).

        Raises:
            RuntimeError: before `reset`.
            TypeError: for actions that are not integers.
            ValueError: for another number of actions, or an action on padding; the item is named.
        """
        if self._tables is None or not self._items:
            raise RuntimeError("call reset(items) before step(actions)")
        actions = self._check_actions(actions, self._tables)
        xp, ended = self._xp, self._ended
        moving = (actions > 0) & ~ended
        stopping = (actions == 0) & ~ended
        # Action 0 leads to the viewpoint itself, so agents that stop or have stopped stay without a branch.
        where = self._node * self._width + xp.where(moving, actions, 0)
        self._node = self._target[where]
        self._view = xp.where(moving, self._views[where], self._view)
        distance = self._goal_distance[self._goal_row + self._node]
        progress = xp.sign(self._distance - distance)
        final = 4.0 * (distance < self.success_radius) - 2.0  # +2 or -2
        # A stopped agent keeps its distance, so its progress is 0.
        reward = xp.where(stopping, final, progress)
        if self._has_goal is not None:
            reward = xp.where(self._has_goal, reward, 0.0)  # the distance is NaN there
        self._distance = distance
        self._ended = ended | stopping
        # References, no copies: each step makes new arrays.
        self._history.append((self._node, self._view, self._ended))
        return Step(self._observe(self._tables), reward, self._ended)

    def _check_actions(self, actions: Any, tables: EnvTables) -> Any:
        """Return the actions on the device, or raise an error that names the first impossible one."""
        if self.device is None:
            actions = np.asarray(actions)
            integral = actions.dtype.kind in "iu"
        else:
            actions = torch.as_tensor(actions, device=self.device)
            integral = not (
                actions.is_floating_point() or actions.is_complex() or actions.dtype == torch.bool
            )
            actions = actions.long() if integral else actions
        if not integral:
            raise TypeError(f"actions are {actions.dtype}; expected integers")
        if tuple(actions.shape) != (len(self._items),):
            raise ValueError(
                f"actions have shape {tuple(actions.shape)}; expected ({len(self._items)},), one per item"
            )
        allowed = tables.world.actions[self._node]
        # An index out of range would silently read the row of another viewpoint.
        wrong = ((actions < 0) | (actions >= allowed)) & ~self._ended
        if bool(wrong.any()):
            row = int(np.nonzero(np.asarray(wrong.cpu() if self.device else wrong))[0][0])
            scan, viewpoint = tables.names[int(self._node[row])]
            raise ValueError(
                f"action {int(actions[row])} on padding, item {self._items[row].instr_id!r} (number {row} of "
                f"the batch) at viewpoint {viewpoint!r} of scan {scan!r}: 0 stops, 1 to "
                f"{int(allowed[row]) - 1} are its neighbours"
            )
        return actions

    def trajectories(self) -> list[dict[str, Any]]:
        """Return the paths of the agents since `reset`, in the official submission format.

        Returns:
            B times ``{"instr_id", "trajectory": [[viewpoint, heading, elevation], ...]}``, for
            `save_predictions` and `score_r2r`.

        Raises:
            RuntimeError: before `reset`.
        """
        if self._tables is None or not self._items:
            raise RuntimeError("call reset(items) before trajectories()")
        nodes, views, ended = (
            np.stack([np.asarray(part.cpu() if self.device else part) for part in parts])
            for parts in zip(*self._history, strict=True)
        )
        records = []
        for row, item in enumerate(self._items):
            steps = int((~ended[:, row]).sum())  # states before the agent stopped; stopping adds none
            path = [
                [self._tables.names[node][1], *self.direction(view)]
                for node, view in zip(nodes[:steps, row], views[:steps, row], strict=True)
            ]
            records.append({"instr_id": item.instr_id, "trajectory": path})
        return records

    @staticmethod
    def direction(view: int) -> list[float]:
        """Return heading and elevation of a view, radians."""
        return [float(VIEW_HEADINGS[view]), float(VIEW_ELEVATIONS[view])]
