"""The discretized Matterport simulator as pure functions: where the camera is, what it sees, how it moves."""

import math
from typing import NamedTuple

import numpy as np

from fq_toolkit.prevalent.world.angles import STEP, VIEW_ELEVATIONS, VIEW_HEADINGS, snap
from fq_toolkit.prevalent.world.world import NavWorld

_COS_HALF_WIDTH = math.cos(math.radians(40))  # 640 x 480 pixels at a vertical field of view of 60 degrees


class CameraState(NamedTuple):
    """A place and one of its 36 views; heading in [0, 2 pi) clockwise from +y, radians."""

    scan: str
    viewpoint: str
    heading: float
    elevation: float
    view: int


class VisibleViewpoint(NamedTuple):
    """A viewpoint that one can go to, relative to the camera; radians and metres."""

    viewpoint: str
    rel_heading: float
    rel_elevation: float
    distance: float


def place_camera(
    world: NavWorld, scan: str, viewpoint: str, heading: float = 0.0, elevation: float = 0.0
) -> CameraState:
    """Start an episode; the direction is snapped to one of the 36 views.

    Raises:
        DataError: for an unknown scan or viewpoint.
    """
    world.scan(scan).locate(viewpoint)
    return CameraState(scan, viewpoint, *snap(heading, elevation))


def visible_viewpoints(world: NavWorld, state: CameraState) -> list[VisibleViewpoint]:
    """Return where one can go from a view: the viewpoint itself, then what stands within 40 degrees.

    Only the horizontal angle decides. The rest is sorted by ``sqrt(rel_heading^2 + rel_elevation^2)``.

    Args:
        world: the graphs.
        state: place and view.

    Source: Matterport3DSimulator, whose test is in float32; so is this one.

    Example:
        >>> from fq_toolkit.prevalent import MiniWorld
        >>> world = MiniWorld(0)
        >>> state = place_camera(world, world.names[0], world.scan(world.names[0]).viewpoints[0])
        >>> visible_viewpoints(world, state)[0].distance
        0.0
    """
    scan = world.scan(state.scan)
    here = scan.locate(state.viewpoint)
    targets = scan.neighbors[here][scan.mask[here]]
    single = scan.positions.astype(np.float32)
    offsets = single[targets] - single[here]
    x, y = offsets[:, 0], offsets[:, 1]
    camera = (
        np.float32(math.cos(math.pi / 2 - state.heading)),
        np.float32(math.sin(math.pi / 2 - state.heading)),
    )
    with np.errstate(divide="ignore", invalid="ignore"):  # a viewpoint straight above: NaN, which is not seen
        scale = np.float32(1) / np.sqrt(x * x + y * y)
        seen = (x * scale) * camera[0] + (y * scale) * camera[1] >= _COS_HALF_WIDTH
    x, y, z = offsets[seen].astype(np.float64).T
    cx, cy = float(camera[0]), float(camera[1])
    rel_heading = np.arctan2(x * cy - y * cx, x * cx + y * cy)
    rel_elevation = np.arctan2(z, np.hypot(x, y)) - state.elevation
    distance = np.sqrt(x * x + y * y + z * z)
    order = np.argsort(np.hypot(rel_heading, rel_elevation), kind="stable")
    names = targets[seen]
    return [VisibleViewpoint(state.viewpoint, 0.0, 0.0, 0.0)] + [
        VisibleViewpoint(
            scan.viewpoints[names[i]], float(rel_heading[i]), float(rel_elevation[i]), float(distance[i])
        )
        for i in order
    ]


def move_camera(
    world: NavWorld, state: CameraState, index: int, turn: float = 0.0, tilt: float = 0.0
) -> CameraState:
    """Go to a visible viewpoint, keeping the heading, then turn by at most one view.

    Args:
        world: the graphs.
        state: place and view.
        index: into `visible_viewpoints`; 0 stays.
        turn: its sign turns right (+) or left (-) by 30 degrees.
        tilt: its sign tilts up or down by 30 degrees, as far as there are views.

    Raises:
        ValueError: for an index that is not visible.
    """
    visible = visible_viewpoints(world, state)
    if not 0 <= index < len(visible):
        raise ValueError(
            f"index {index} of a move from {state.viewpoint!r} in scan {state.scan!r}: {len(visible)} "
            f"viewpoints are visible, 0 to {len(visible) - 1}"
        )
    heading = state.heading + ((turn > 0) - (turn < 0)) * STEP
    elevation = state.elevation + ((tilt > 0) - (tilt < 0)) * STEP
    return CameraState(state.scan, visible[index].viewpoint, *snap(heading, elevation))


def view_state(scan: str, viewpoint: str, view: int) -> CameraState:
    """Return the state that looks at one of the 36 views."""
    return CameraState(scan, viewpoint, float(VIEW_HEADINGS[view]), float(VIEW_ELEVATIONS[view]), view)
