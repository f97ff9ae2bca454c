"""Small worlds and files for tests."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fq_toolkit.prevalent import CameraState, NavWorld, Scan
from fq_toolkit.prevalent.world.angles import VIEW_ELEVATIONS, VIEW_HEADINGS


def line_world(*lengths: float, scan: str = "line") -> NavWorld:
    """Return a straight way north: viewpoints a, b, c, ... with these distances between them."""
    y = np.concatenate([[0.0], np.cumsum(lengths)])
    positions = np.stack([np.zeros_like(y), y, np.zeros_like(y)], axis=1)
    adjacent = np.abs(np.subtract.outer(range(len(y)), range(len(y)))) == 1
    return NavWorld([Scan(scan, [chr(ord("a") + i) for i in range(len(y))], positions, adjacent)])


def view_state(scan: str, viewpoint: str, view: int) -> CameraState:
    """Return the state that looks at one of the 36 views."""
    return CameraState(scan, viewpoint, float(VIEW_HEADINGS[view]), float(VIEW_ELEVATIONS[view]), view)


def random_walk(
    world: NavWorld, scan: str, start: int, steps: int, generator: np.random.Generator
) -> list[str]:
    """Return viewpoints of a walk along edges."""
    here, path = world.scan(scan), [start]
    for _ in range(steps):
        choices = here.neighbors[path[-1]][here.mask[path[-1]]]
        if not len(choices):
            break
        path.append(int(generator.choice(choices)))
    return [here.viewpoints[i] for i in path]


def write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def connectivity_record(
    name: str, position: Sequence[float], unobstructed: Sequence[bool], included: bool = True
):
    x, y, z = position
    return {
        "image_id": name, "pose": [1, 0, 0, x, 0, 1, 0, y, 0, 0, 1, z, 0, 0, 0, 1], "included": included,
        "visible": list(unobstructed), "unobstructed": list(unobstructed), "height": 1.5,
    }  # fmt: skip
