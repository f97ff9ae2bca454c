"""Correctness gates of the navigation cases: ours and the peers must say the same before either is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import numpy as np

from benchmarks.navigation import data as navigation_data
from benchmarks.navigation import peers as navigation_peers
from benchmarks.navigation.problem import ENV_QUICK, ENV_SHAPES
from fq_toolkit.prevalent import BatchedNavEnv, NavWorld, collect_triplets, measure_paths


def _both() -> Iterator[navigation_data.Graphs]:
    """Yield the small MiniWorld, then the graphs that are measured."""
    yield navigation_data.graphs(ENV_QUICK[0])
    yield navigation_data.graphs(ENV_SHAPES[0])


def check_env(factory: Callable[[NavWorld], Any] = BatchedNavEnv, *, device: str = "cpu") -> list[str]:
    """Compare walks with stops: place, view, distance, teacher, reward, end of every agent at each step."""
    wrong = []
    for data in _both():
        items = navigation_data.walkable(data, 40)
        actions = navigation_data.walk(BatchedNavEnv(data.world), items, 12, teacher=0.5)
        for agent, step in enumerate(np.random.default_rng(5).integers(0, 14, len(items))):
            if step < 12:  # those of the others come after the walk: they never stop
                actions[step][agent] = 0
        env, loop = factory(data.world), navigation_peers.LoopEnv(data.world, items)
        env.reset(items)
        loop.reset()
        for number, row in enumerate(actions):
            observation, reward, done = env.step(row)
            seen = loop.step(row.tolist())
            for name, got in (
                ("viewpoint", observation.viewpoints),
                ("view", observation.view),
                ("distance", observation.distance),
                ("teacher", observation.teacher),
                ("reward", reward),
                ("done", done),
            ):
                if list(got) != [entry[name] for entry in seen]:
                    wrong.append(f"env, {data.note}, step {number}: {name} is off")
            counts = [1 + len(entry["candidates"]) for entry in seen]
            if observation.action_mask.sum(axis=1).tolist() != counts:
                wrong.append(f"env, {data.note}, step {number}: the action mask is off")
    return wrong


def check_world(
    factory: Callable[..., NavWorld] = NavWorld.from_connectivity, *, device: str = "cpu"
) -> list[str]:
    """Compare edges with their lengths, and all shortest distances, with those of networkx."""
    wrong = []
    for data in _both():
        name = min(
            data.world.names, key=lambda entry: (data.folder / f"{entry}_connectivity.json").stat().st_size
        )
        scan = factory(data.folder, [name]).scan(name)
        graph = navigation_peers.load_networkx(data.folder, [name], paths=False)[name]
        edges = {
            (scan.viewpoints[i], scan.viewpoints[scan.neighbors[i, slot]]): scan.lengths[i, slot]
            for i, slot in zip(*np.nonzero(scan.mask), strict=True)
        }
        wanted = {pair: graph.edges[pair]["weight"] for a, b in graph.edges for pair in ((a, b), (b, a))}
        if edges.keys() != wanted.keys():
            wrong.append(f"world, {data.note}, scan {name}: the edges differ")
        elif not np.allclose([edges[pair] for pair in wanted], list(wanted.values()), rtol=1e-12):
            wrong.append(f"world, {data.note}, scan {name}: a length is off")
        tables = navigation_peers.load_networkx(data.folder, [name], paths=True)[name]
        for a, row in tables.items():
            got = [scan.distances[scan.locate(a), scan.locate(b)] for b in row]
            if not np.allclose(got, list(row.values()), rtol=1e-12):
                wrong.append(f"world, {data.note}, scan {name}: a distance from {a} is off")
    return wrong


def check_triplets(collect: Callable[..., list[Any]] = collect_triplets, *, device: str = "cpu") -> list[str]:
    """Compare moves and labels with those found by looking into all 36 views."""
    wrong = []
    for data in _both():
        items = navigation_data.equal_paths(data, 8, 6)
        found = collect(data.world, items, lambda text: [0] * 80)
        for item, triplet, (moves, labels) in zip(
            items, found, navigation_peers.triplets_by_turning(data.world, items), strict=True
        ):
            gap = np.abs(np.array(triplet.directions) - np.array(moves))
            gap[:, 1] = np.minimum(gap[:, 1], np.abs(gap[:, 1] - 2 * np.pi))  # -pi and pi are one direction
            if list(triplet.actions) != labels or gap.max() > 1e-6:
                wrong.append(f"triplets, {data.note}, item {item.instr_id}: a move or a label is off")
    return wrong


def check_metrics(measure: Callable[..., Any] = measure_paths, *, device: str = "cpu") -> list[str]:
    """Compare every metric of every item with its definition."""
    wrong = []
    for data in _both():
        items, paths = navigation_data.wandering_paths(data, 60)
        scans = [item.scan for item in items]
        found = measure(data.world, scans, paths, [i.path for i in items], [i.goals for i in items])
        tables = navigation_peers.distance_tables(data.world, scans)
        for row, (item, path) in enumerate(zip(items, paths, strict=True)):
            wanted = navigation_peers.measure_one(
                tables[item.scan], [v for v, _ in groupby(path)], item.path, item.goals[0]
            )
            for name, value in wanted.items():
                if not np.isclose(getattr(found, name)[row], value, rtol=1e-9, atol=1e-12):
                    wrong.append(f"metrics, {data.note}, item {item.instr_id}: {name} is off")
    return wrong


GATES: dict[str, Callable[..., list[str]]] = {
    "nav_env": check_env,
    "nav_world": check_world,
    "nav_triplets": check_triplets,
    "nav_metrics": check_metrics,
}
