"""Landmarks of MiniWorld: what stands where, what it looks like, and how one speaks of it."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from fq_toolkit.prevalent.angles import wrap
from fq_toolkit.prevalent.scan import Scan

LANDMARKS = (
    "sofa", "lamp", "clock", "piano", "mirror", "desk", "stove", "bathtub", "bookshelf", "fireplace",
    "painting", "statue", "aquarium", "globe", "vase", "fridge", "bench", "carpet", "chandelier", "drum",
    "easel", "fountain", "guitar", "hammock", "ladder", "mannequin", "oven", "pillar", "radio", "sink",
    "table", "television", "tent", "telescope", "trophy", "umbrella", "wardrobe", "window", "bed", "cactus",
)  # fmt: skip

_APPEARANCE_SEED = 2002_10638  # the same in every world, so that what is learned in one holds in another


def landmark_vectors(dim: int) -> np.ndarray:
    """Return what each landmark looks like: fixed unit-variance vectors, the same in every world.

    Args:
        dim: width.

    Returns:
        float32 (40, dim).
    """
    return np.random.default_rng(_APPEARANCE_SEED).standard_normal((len(LANDMARKS), dim), dtype=np.float32)


def place_landmarks(scan: Scan, generator: np.random.Generator) -> np.ndarray:
    """Put one landmark at each viewpoint so that no two neighbours of a viewpoint have the same.

    Args:
        scan: the graph.
        generator: of the choice.

    Returns:
        int64 (n,), numbers of landmarks.

    Raises:
        ValueError: when there are fewer landmarks than the graph needs.
    """
    close = scan.adjacent | (scan.adjacent.astype(np.int64) @ scan.adjacent.astype(np.int64) > 0)
    chosen = np.full(len(scan), -1)
    for viewpoint in range(len(scan)):
        taken = chosen[close[viewpoint]]
        free = np.setdiff1d(np.arange(len(LANDMARKS)), taken)
        if not len(free):
            raise ValueError(
                f"scan {scan.name!r} needs more than {len(LANDMARKS)} landmarks: use less crowded rooms"
            )
        chosen[viewpoint] = generator.choice(free)
    return chosen


def view_pictures(
    scan: Scan, landmarks: np.ndarray, dim: int, noise: float, generator: np.random.Generator
) -> np.ndarray:
    """Return view features: each view shows the landmarks of the neighbours that lie in it, and noise.

    Returns:
        float32 (n, 36, dim).
    """
    vectors = landmark_vectors(dim)
    pictures = noise * generator.standard_normal((len(scan), 36, dim), dtype=np.float32)
    i, slot = np.nonzero(scan.mask)
    np.add.at(pictures, (i, scan.views[i, slot]), vectors[landmarks[scan.neighbors[i, slot]]])
    return pictures


def turn_words(turn: float, rise: float) -> str:
    """Return words for a move: the turn in radians, positive to the right, and the elevation of the way.

    Example:
        >>> turn_words(-1.5, 0.4), turn_words(0.1, 0.0)
        ('turn left and go up', 'go straight')
    """
    turn = wrap(turn)
    if abs(turn) < math.pi / 4:
        words = "go straight"
    elif abs(turn) > 3 * math.pi / 4:
        words = "turn around"
    else:
        words = "turn right" if turn > 0 else "turn left"
    if abs(rise) < 0.2:
        return words
    way = "up" if rise > 0 else "down"
    return f"go {way}" if words == "go straight" else f"{words} and go {way}"


def describe_path(
    scan: Scan, landmarks: np.ndarray, path: Sequence[int], heading: float, generator: np.random.Generator
) -> str:
    """Return an instruction for a path, one clause per edge, naming the landmark each edge leads to.

    Args:
        scan: the graph.
        landmarks: (n,) as from `place_landmarks`.
        path: viewpoints, at least one.
        heading: of the agent at the start, radians.
        generator: chooses among ways of saying it.
    """
    clauses = []
    for here, there in pairwise(path):
        slot = int(np.nonzero(scan.neighbors[here] == there)[0][0])
        way = turn_words(float(scan.headings[here, slot]) - heading, float(scan.elevations[here, slot]))
        preposition = ("to", "toward", "past" if there != path[-1] else "to")[generator.integers(3)]
        clauses.append(f"{way} {preposition} the {LANDMARKS[landmarks[there]]}")
        heading = float(scan.headings[here, slot])
    joint = (" , ", " , then ", " and then ")[generator.integers(3)]
    end = ("stop", "wait", "stop there")[generator.integers(3)]
    return joint.join([*clauses, end]) + " ."
