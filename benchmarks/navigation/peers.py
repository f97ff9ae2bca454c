"""What navigation is measured against: one agent, one scan, one step, one item at a time, in plain Python.

Written as programs of the field are: loops over dictionaries that are filled first, networkx for graphs, and
36 turns of the camera to find the candidates of a viewpoint.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from fq_toolkit.prevalent import CameraState, NavItem, NavWorld, place_camera, visible_viewpoints

Table = dict[str, dict[str, float]]
#: Heading and elevation of each of the 36 views: three rings of twelve, from below to above.
_VIEWS = [(view % 12 * (math.pi / 6), (view // 12 - 1) * (math.pi / 6)) for view in range(36)]


class LoopEnv:
    """Agents in a list; what each needs is looked up in dictionaries that are made first.

    Args:
        world: the graphs.
        items: one per agent.
        success_radius: metres.
    """

    def __init__(self, world: NavWorld, items: Sequence[NavItem], success_radius: float = 3.0) -> None:
        self.world, self.items, self.radius = world, list(items), success_radius
        self.neighbors: dict[str, dict[str, list[tuple[str, int]]]] = {}
        self.distances: dict[tuple[str, str], dict[str, float]] = {}
        self.teachers: dict[tuple[str, str], dict[str, int]] = {}
        for item in self.items:
            scan, goal = world.scan(item.scan), item.goals[0]
            if item.scan not in self.neighbors:
                self.neighbors[item.scan] = {
                    viewpoint: [
                        (scan.viewpoints[scan.neighbors[i, slot]], int(scan.views[i, slot]))
                        for slot in range(scan.mask.shape[1])
                        if scan.mask[i, slot]
                    ]
                    for i, viewpoint in enumerate(scan.viewpoints)
                }
            if (item.scan, goal) not in self.distances:
                remaining = scan.distances[:, scan.locate(goal)]
                self.distances[item.scan, goal] = dict(zip(scan.viewpoints, remaining.tolist(), strict=True))
                slots = 1 + scan.next_slots(remaining)
                self.teachers[item.scan, goal] = dict(zip(scan.viewpoints, slots.tolist(), strict=True))

    def reset(self) -> None:
        """Put every agent at its start."""
        self.places = [item.start for item in self.items]
        self.views = [_camera(self.world, item).view for item in self.items]
        self.ended = [False] * len(self.items)

    def step(self, actions: Sequence[int]) -> list[dict[str, Any]]:
        """Move every agent; return what each sees."""
        seen = []
        for row, (item, action) in enumerate(zip(self.items, actions, strict=True)):
            table = self.distances[item.scan, item.goals[0]]
            before, reward = table[self.places[row]], 0.0
            if not self.ended[row]:
                if action == 0:
                    self.ended[row] = True
                    reward = 2.0 if before < self.radius else -2.0
                else:
                    options = self.neighbors[item.scan][self.places[row]]
                    self.places[row], self.views[row] = options[action - 1]
                    after = table[self.places[row]]
                    reward = float((before > after) - (before < after))
            teacher = self.teachers[item.scan, item.goals[0]][self.places[row]]
            seen.append(
                {
                    "viewpoint": self.places[row],
                    "view": self.views[row],
                    "candidates": self.neighbors[item.scan][self.places[row]],
                    "distance": table[self.places[row]],
                    "teacher": -1 if self.ended[row] else teacher,
                    "reward": reward,
                    "done": self.ended[row],
                }
            )
        return seen


def load_networkx(folder: Path, scans: Sequence[str], *, paths: bool) -> dict[str, Any]:
    """Load graphs of scans edge by edge, with ``paths`` also all their shortest distances (Dijkstra)."""
    import networkx

    loaded = {}
    for scan in scans:
        records = json.loads((folder / f"{scan}_connectivity.json").read_text())
        graph = networkx.Graph()
        for i, record in enumerate(records):
            if not record["included"]:
                continue
            for j, open_way in enumerate(record["unobstructed"]):
                if open_way and records[j]["included"]:
                    a, b = (tuple(records[k]["pose"][m] for m in (3, 7, 11)) for k in (i, j))
                    graph.add_edge(record["image_id"], records[j]["image_id"], weight=math.dist(a, b))
        loaded[scan] = dict(networkx.all_pairs_dijkstra_path_length(graph)) if paths else graph
    return loaded


def candidates_by_turning(world: NavWorld, scan: str, viewpoint: str) -> dict[str, tuple[int, float, float]]:
    """Return neighbour -> (view, heading, elevation), found by looking into each of the 36 views."""
    best: dict[str, tuple[float, int, float, float]] = {}
    for view in range(36):
        state = CameraState(scan, viewpoint, *_VIEWS[view], view)
        for seen in visible_viewpoints(world, state)[1:]:
            away = math.hypot(seen.rel_heading, seen.rel_elevation)
            if seen.viewpoint not in best or away < best[seen.viewpoint][0]:
                direction = (state.heading + seen.rel_heading, state.elevation + seen.rel_elevation)
                best[seen.viewpoint] = (away, view, *direction)
    return {name: found[1:] for name, found in best.items()}


def triplets_by_turning(world: NavWorld, items: Sequence[NavItem]) -> list[tuple[list[Any], list[int]]]:
    """Return per item [absolute view, relative heading, elevation] of every move, and the action labels."""
    collected = []
    for item in items:
        moves: list[Any] = []
        labels: list[int] = []
        heading = _camera(world, item).heading
        for viewpoint, target in zip(item.path, (*item.path[1:], None), strict=True):
            if target is None:
                moves.append((-1.0, 90.0, 90.0))
                labels.append(0)
                break
            options = candidates_by_turning(world, item.scan, viewpoint)
            relative = {name: _wrap(option[1] - heading) for name, option in options.items()}
            order = sorted(
                options, key=lambda name: (round(abs(relative[name]), 6), _number(world, item, name))
            )
            labels.append(1 + order.index(target))
            view, _, elevation = options[target]
            moves.append((float(view), relative[target], elevation))
            heading = view % 12 * math.pi / 6
        collected.append((moves, labels))
    return collected


def _camera(world: NavWorld, item: NavItem) -> CameraState:
    """Return where an item starts, with its direction snapped to a view."""
    return place_camera(world, item.scan, item.start, item.heading, item.elevation)


def _number(world: NavWorld, item: NavItem, viewpoint: str) -> int:
    return world.scan(item.scan).locate(viewpoint)


def _wrap(angle: float) -> float:
    return (angle + math.pi) % (2 * math.pi) - math.pi


def distance_tables(world: NavWorld, scans: Sequence[str]) -> dict[str, Table]:
    """Return shortest distances as dictionaries of dictionaries."""
    found = {}
    for name in dict.fromkeys(scans):
        scan = world.scan(name)
        rows = scan.distances.tolist()
        found[name] = {
            viewpoint: dict(zip(scan.viewpoints, row, strict=True))
            for viewpoint, row in zip(scan.viewpoints, rows, strict=True)
        }
    return found


def measure_one(
    distance: Table, path: Sequence[str], reference: Sequence[str], goal: str
) -> dict[str, float]:
    """Compute all metrics of one item by their definitions; paths have no immediate repetitions."""
    length = sum(distance[a][b] for a, b in pairwise(path))
    error = distance[path[-1]][goal]
    oracle = min(distance[viewpoint][goal] for viewpoint in path)
    shortest = distance[path[0]][goal]
    success = float(error < 3.0)
    efficiency = shortest / max(shortest, length) if shortest > 0 else float(length == 0)
    coverage = sum(math.exp(-min(distance[r][p] for p in path) / 3.0) for r in reference) / len(reference)
    expected = coverage * sum(distance[a][b] for a, b in pairwise(reference))
    total = expected + abs(expected - length)
    warp = [[math.inf] * (len(path) + 1) for _ in range(len(reference) + 1)]
    warp[0][0] = 0.0
    for i, r in enumerate(reference):
        for j, p in enumerate(path):
            warp[i + 1][j + 1] = distance[r][p] + min(warp[i][j + 1], warp[i + 1][j], warp[i][j])
    ndtw = math.exp(-warp[-1][-1] / (len(reference) * 3.0))
    return {
        "TL": length,
        "NE": error,
        "OE": oracle,
        "SR": success,
        "OSR": float(oracle < 3.0),
        "SPL": success * efficiency,
        "CLS": coverage * (expected / total if total > 0 else 1.0),
        "nDTW": ndtw,
        "SDTW": success * ndtw,
    }
