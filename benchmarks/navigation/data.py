"""Graphs and items of the navigation cases: the Matterport graphs where they are at hand, else MiniWorld."""

from __future__ import annotations

import os
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.machine import ROOT
from benchmarks.navigation.problem import MINI, REAL, GraphShape
from fq_toolkit.prevalent import BatchedNavEnv, FeatureStore, MiniWorld, NavItem, NavWorld, load_r2r

_LARGEST = "B6ByNegPMKs"
_FEATURE_DIM = 2048


class Graphs(NamedTuple):
    """A world with items; ``note`` says which world, for the rows."""

    world: NavWorld
    items: list[NavItem]
    folder: Path
    largest: str
    note: str
    temporary: tempfile.TemporaryDirectory[str] | None = None


def data_folder() -> Path:
    """Return the folder of the Matterport graphs and R2R annotations, whether or not it exists."""
    return Path(os.environ.get("FQ_TOOLKIT_DATA", ROOT.parent / "shared" / "data")) / "vln"


@lru_cache(maxsize=2)
def _load(kind: str) -> Graphs:
    folder = data_folder()
    if kind == REAL and (folder / "tasks" / "R2R_val_unseen.json").exists():
        world = NavWorld.from_connectivity(folder / "connectivity")
        items = load_r2r(folder / "tasks" / "R2R_val_unseen.json")
        return Graphs(world, items, folder / "connectivity", _LARGEST, "Matterport graphs, R2R val_unseen")
    mini = MiniWorld(0, num_scans=2 if kind == MINI else 90)
    temporary = tempfile.TemporaryDirectory(prefix="navigation-bench-")
    mini.to_connectivity_json(temporary.name)
    items = mini.items(30 if kind == MINI else 2349)
    largest = max(mini.names, key=lambda name: len(mini.scan(name)))
    return Graphs(
        mini, items, Path(temporary.name), largest, f"MiniWorld of {len(mini.names)} scans", temporary
    )


def graphs(shape: GraphShape) -> Graphs:
    """Return graphs and items for a shape; quick shapes take a small MiniWorld."""
    return _load(shape.layout)


def walk(env: BatchedNavEnv, items: list[NavItem], steps: int, *, teacher: float = 0.0) -> list[np.ndarray]:
    """Return actions (steps, B) that wander about: never a stop, and a share of them the teacher's moves."""
    generator, actions = np.random.default_rng(7), []
    observation = env.reset(items)
    for _ in range(steps):
        neighbors = observation.action_mask.sum(axis=1) - 1
        random = 1 + generator.integers(0, 1 << 30, len(items)) % neighbors
        follows = (generator.random(len(items)) < teacher) & (observation.teacher > 0)
        actions.append(np.where(follows, observation.teacher, random))
        observation, _, _ = env.step(actions[-1])
    return actions


def walkable(data: Graphs, count: int) -> list[NavItem]:
    """Return as many items as asked for, repeated where there are fewer."""
    return [data.items[row % len(data.items)] for row in range(count)]


def equal_paths(data: Graphs, count: int, steps: int) -> list[NavItem]:
    """Return items whose annotated paths have exactly so many viewpoints, repeated where there are fewer."""
    chosen = [item for item in data.items if len(item.path) == steps]
    return [chosen[row % len(chosen)] for row in range(count)]


def wandering_paths(data: Graphs, count: int) -> tuple[list[NavItem], list[list[str]]]:
    """Return items, and paths of 10 steps that follow the teacher in four of five steps."""
    items = walkable(data, count)
    env = BatchedNavEnv(data.world)
    walk(env, items, 10, teacher=0.8)
    return items, [[pose[0] for pose in record["trajectory"]] for record in env.trajectories()]


@lru_cache(maxsize=1)
def feature_store(kind: str, scans: tuple[str, ...]) -> FeatureStore:
    """Return noise of the released width, float16 in memory."""
    world = _load(kind).world
    keys = [(scan, viewpoint) for scan in scans for viewpoint in world.scan(scan).viewpoints]
    noise = np.random.default_rng(3).random((len(keys), 36, _FEATURE_DIM), dtype=np.float32)
    return FeatureStore(keys, noise.astype(np.float16))
