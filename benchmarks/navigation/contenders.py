"""Contenders of the navigation cases.

``N`` of a shape is what is counted: steps of agents, scans, time steps, items. An episode has 8 steps, as
paths of R2R do, and its reset is part of the time.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

from benchmarks.contender import Contender, Task, Unavailable
from benchmarks.navigation import data as navigation_data
from benchmarks.navigation import peers as navigation_peers
from benchmarks.navigation.problem import GraphProblem
from fq_toolkit.prevalent import BatchedNavEnv, NavWorld, collect_triplets, measure_paths

ENV, ENV_FEATURES, ENV_LOOP = "BatchedNavEnv", "BatchedNavEnv, with features", "one agent at a time"
WORLD, WORLD_PATHS = "NavWorld", "NavWorld, with shortest paths"
NETWORKX, NETWORKX_PATHS = "networkx", "networkx, with shortest paths"
TRIPLETS, TURNING = "collect_triplets", "36 turns a step"
METRICS, METRICS_LOOP = "measure_paths", "one item at a time"
_CPU = ("cpu",)


def _env(problem: GraphProblem, *, features: bool) -> Task:
    shape = problem.shape
    data = navigation_data.graphs(shape)
    items = navigation_data.walkable(data, shape.batch)
    store = None
    if features:
        store = navigation_data.feature_store(shape.layout, tuple(sorted({item.scan for item in data.items})))
    env = BatchedNavEnv(data.world, store)
    actions = navigation_data.walk(env, items, shape.steps)

    def run(_: Any) -> Any:
        env.reset(items)
        for row in actions:
            observation, reward, done = env.step(row)
            mask, teacher = observation.action_mask, observation.teacher
            if features:
                observation.candidate_features()
        return mask, teacher, reward, done

    width = f", {store.dim} float16 synthetic features" if store is not None else ""
    return Task(run, note=data.note + width)


def _env_loop(problem: GraphProblem) -> Task:
    data = navigation_data.graphs(problem.shape)
    items = navigation_data.walkable(data, problem.shape.batch)
    actions = [
        row.tolist() for row in navigation_data.walk(BatchedNavEnv(data.world), items, problem.shape.steps)
    ]
    loop = navigation_peers.LoopEnv(data.world, items)

    def run(_: Any) -> Any:
        loop.reset()
        for row in actions:
            seen = loop.step(row)
        return seen

    return Task(run, note=data.note)


def _scans(problem: GraphProblem) -> tuple[navigation_data.Graphs, list[str]]:
    data = navigation_data.graphs(problem.shape)
    return data, [data.largest] if problem.shape.batch == 1 else list(data.world.names)


def _world(problem: GraphProblem, *, paths: bool) -> Task:
    data, scans = _scans(problem)

    def run(_: Any) -> NavWorld:
        world = NavWorld.from_connectivity(data.folder, scans)
        for name in scans:
            scan = world.scan(name)
            if paths:
                scan.distances  # noqa: B018 - computed when first read
        return world

    return Task(run, note=data.note)


def _networkx(problem: GraphProblem, *, paths: bool) -> Task:
    data, scans = _scans(problem)
    if paths and len(scans) > 10:
        raise Unavailable("networkx takes most of a minute for all shortest paths of all scans")
    return Task(lambda _: navigation_peers.load_networkx(data.folder, scans, paths=paths), note=data.note)


def _triplets(problem: GraphProblem, *, turning: bool) -> Task:
    data = navigation_data.graphs(problem.shape)
    items = navigation_data.equal_paths(data, problem.shape.batch, problem.shape.steps)
    numbers: dict[str, int] = {}

    def encode(text: str) -> list[int]:
        ids = [numbers.setdefault(word, len(numbers) + 5) for word in text.split()[:78]]
        return [2, *ids, 3] + [0] * (78 - len(ids))

    if turning:
        return Task(lambda _: navigation_peers.triplets_by_turning(data.world, items), note=data.note)
    return Task(lambda _: collect_triplets(data.world, items, encode), note=data.note)


def _metrics(problem: GraphProblem, *, loop: bool) -> Task:
    data = navigation_data.graphs(problem.shape)
    items, paths = navigation_data.wandering_paths(data, problem.shape.batch)
    scans = [item.scan for item in items]
    if not loop:
        references, goals = [item.path for item in items], [item.goals for item in items]
        return Task(lambda _: measure_paths(data.world, scans, paths, references, goals), note=data.note)
    tables = navigation_peers.distance_tables(data.world, scans)

    def run(_: Any) -> list[dict[str, float]]:
        return [
            navigation_peers.measure_one(
                tables[item.scan], [v for v, _ in groupby(path)], item.path, item.goals[0]
            )
            for item, path in zip(items, paths, strict=True)
        ]

    return Task(run, note=data.note)


def _ours(name: str, build: Any) -> Contender:
    return Contender(name, build, kind="ours", package="numpy", devices=_CPU)


def _peer(name: str, build: Any, package: str = "numpy") -> Contender:
    return Contender(name, build, package=package, devices=_CPU)


ENV_STEPS = (
    _ours(ENV, lambda problem: _env(problem, features=False)),
    _ours(ENV_FEATURES, lambda problem: _env(problem, features=True)),
    _peer(ENV_LOOP, _env_loop),
)
WORLDS = (
    _ours(WORLD, lambda problem: _world(problem, paths=False)),
    _ours(WORLD_PATHS, lambda problem: _world(problem, paths=True)),
    _peer(NETWORKX, lambda problem: _networkx(problem, paths=False), "networkx"),
    _peer(NETWORKX_PATHS, lambda problem: _networkx(problem, paths=True), "networkx"),
)
TRIPLET_BUILDERS = (
    _ours(TRIPLETS, lambda problem: _triplets(problem, turning=False)),
    _peer(TURNING, lambda problem: _triplets(problem, turning=True)),
)
PATH_METRICS = (
    _ours(METRICS, lambda problem: _metrics(problem, loop=False)),
    _peer(METRICS_LOOP, lambda problem: _metrics(problem, loop=True)),
)
