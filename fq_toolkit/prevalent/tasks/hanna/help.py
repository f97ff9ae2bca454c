"""Helpers of HANNA: one that knows the building, and one with routes that people described."""

import re
from collections.abc import Iterable
from typing import NamedTuple, Protocol

import numpy as np

from fq_toolkit.prevalent.miniworld.landmarks import describe_path
from fq_toolkit.prevalent.miniworld.world import MiniWorld
from fq_toolkit.prevalent.world.items import NavItem
from fq_toolkit.prevalent.world.world import NavWorld

# Every generated instruction ends with stopping, which is wrong where the edges shown end before the goal.
_LAST_CLAUSE = re.compile(r"( ,)?( and)?( then)? (stop there|stop|wait) \.$")


class Help(NamedTuple):
    """What a helper says.

    text: what to do from here.
    path: the viewpoints of the route that it describes, from here on.
    """

    text: str
    path: tuple[str, ...]


class Helper(Protocol):
    """Answers requests."""

    def help(self, scan: str, viewpoint: str, heading: float, goals: tuple[str, ...]) -> Help | None:
        """Return what to do from here, or None where nobody can help."""


class MiniHelper:
    """Describes the next edges of the shortest path to the nearest goal in MiniWorld, always alike.

    Args:
        world: the building.
        edges: how far it describes.
    """

    def __init__(self, world: MiniWorld, edges: int = 3) -> None:
        self.world, self.edges = world, edges

    def help(self, scan: str, viewpoint: str, heading: float, goals: tuple[str, ...]) -> Help | None:
        """Return the next edges in words; they end with stopping only at the goal."""
        here = self.world.scan(scan)
        place, ends = here.locate(viewpoint), [here.locate(goal) for goal in goals]
        if not ends or not np.isfinite(here.distances[place, ends]).any():
            return None
        goal = ends[int(np.argmin(here.distances[place, ends]))]
        path = here.shortest_path(place, goal)
        shown = path[: self.edges + 1]
        generator = np.random.default_rng([self.world.seed, place, goal])
        told = describe_path(
            here, self.world.landmarks[scan], shown, heading, generator, turns=self.world.turns
        )
        text = told if len(path) == len(shown) else _LAST_CLAUSE.sub(" .", told)
        return Help(text, tuple(here.viewpoints[node] for node in shown))


class RouteHelper:
    """Repeats the description of the route that starts at the agent and ends nearest to a goal.

    HANNA's own assistant does the same with the routes of R2R.

    Args:
        world: the graphs.
        routes: paths with instructions, such as those of R2R.
    """

    def __init__(self, world: NavWorld, routes: Iterable[NavItem]) -> None:
        self.world = world
        self.items = list(routes)
        self.routes: dict[tuple[str, str], list[NavItem]] = {}
        for route in self.items:
            self.routes.setdefault((route.scan, route.start), []).append(route)

    def help(self, scan: str, viewpoint: str, heading: float, goals: tuple[str, ...]) -> Help | None:
        """Return the instruction of the best route, None without one that leads nearer to a goal."""
        here = self.world.scan(scan)
        ends = [here.locate(goal) for goal in goals]
        if not ends:
            return None
        remaining = here.distances[:, ends].min(axis=1)
        best, least = None, remaining[here.locate(viewpoint)]
        for route in self.routes.get((scan, viewpoint), ()):
            left = remaining[here.locate(route.path[-1])]
            if left < least:
                best, least = Help(route.instruction, route.path), left
        return best
