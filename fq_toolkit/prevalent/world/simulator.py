"""The discretized Matterport simulator as pure functions: camera state, visible viewpoints, moves.

Own code, because the simulator itself is a C++ program that needs the images to be built and run.
"""

import math
from typing import NamedTuple

import numpy as np

from fq_toolkit.prevalent.world.angles import STEP, snap
from fq_toolkit.prevalent.world.world import NavWorld

_COS_HALF_WIDTH = math.cos(math.radians(40))  # 640 x 480 pixels at a vertical field of view of 60 degrees


class CameraState(NamedTuple):
    """A viewpoint and one of its 36 views; radians, heading in [0, 2 pi) clockwise from +y."""

    scan: str
    viewpoint: str
    heading: float
    elevation: float
    view: int


class VisibleViewpoint(NamedTuple):
    """A reachable viewpoint, relative to the camera; radians and metres."""

    viewpoint: str
    rel_heading: float
    rel_elevation: float
    distance: float


def place_camera(
    world: NavWorld, scan: str, viewpoint: str, heading: float = 0.0, elevation: float = 0.0
) -> CameraState:
    """Place the camera at the start of an episode; the direction is snapped to one of the 36 views.

    Raises:
        DataError: for an unknown scan or viewpoint.
    """
    world.scan(scan).locate(viewpoint)
    return CameraState(scan, viewpoint, *snap(heading, elevation))


def visible_viewpoints(world: NavWorld, state: CameraState) -> list[VisibleViewpoint]:
    """Return where the agent can go from a view: the viewpoint itself, then the neighbours in sight.

    A neighbour at the offset ``(x, y, z)`` is in sight if its horizontal angle to the camera is at most half
    the field of view, whatever its elevation; they are sorted by their distance from the image centre::

        (x cos(pi/2 - h) + y sin(pi/2 - h)) / sqrt(x^2 + y^2) >= cos(40 deg),   h the heading
        order by sqrt(rel_heading^2 + rel_elevation^2)

    Args:
        world: the graphs.
        state: place and view.

    Source: Matterport3DSimulator, which does this test in float32; so does this function.

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
    # float32 up to the comparison: a neighbour on the very border is in sight or not as in the simulator.
    single = scan.positions.astype(np.float32)
    offsets = single[targets] - single[here]
    x, y = offsets[:, 0], offsets[:, 1]
    camera = (
        np.float32(math.cos(math.pi / 2 - state.heading)),
        np.float32(math.sin(math.pi / 2 - state.heading)),
    )
    with np.errstate(divide="ignore", invalid="ignore"):  # a viewpoint straight above: NaN, so never in sight
        scale = np.float32(1) / np.sqrt(x * x + y * y)
        seen = (x * scale) * camera[0] + (y * scale) * camera[1] >= _COS_HALF_WIDTH
    x, y, z = offsets[seen].astype(np.float64).T
    # Angle between camera and neighbour from their cross and dot product; clockwise is positive.
    cx, cy = float(camera[0]), float(camera[1])
    rel_heading = np.arctan2(x * cy - y * cx, x * cx + y * cy)
    rel_elevation = np.arctan2(z, np.hypot(x, y)) - state.elevation
    distance = np.sqrt(x * x + y * y + z * z)
    order = np.argsort(np.hypot(rel_heading, rel_elevation), kind="stable")  # equals: order of the file
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
    """Move to a visible viewpoint, keep the heading, and then turn by at most one view.

    Args:
        world: the graphs.
        state: place and view.
        index: index into `visible_viewpoints`; 0 stays.
        turn: the sign turns right (+) or left (-) by 30 degrees.
        tilt: the sign tilts up (+) or down (-) by 30 degrees; the highest and lowest views are the limits.

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
