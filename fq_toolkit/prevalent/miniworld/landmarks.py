"""Landmarks of MiniWorld: where they stand, what they look like, and how instructions mention them."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from fq_toolkit.prevalent.world.angles import wrap
from fq_toolkit.prevalent.world.scan import Scan

LANDMARKS = (
    "sofa", "lamp", "clock", "piano", "mirror", "desk", "stove", "bathtub", "bookshelf", "fireplace",
    "painting", "statue", "aquarium", "globe", "vase", "fridge", "bench", "carpet", "drum", "easel",
    "fountain", "guitar", "hammock", "ladder",
)  # fmt: skip

_BESIDE = 0.5  # strength of a landmark in the views around the one that shows it best, where it is 1

_APPEARANCE_SEED = 2002_10638  # the same in every world, so that what is learned in one holds in another


def landmark_vectors(dim: int) -> np.ndarray:
    """Return the appearance of each landmark: fixed vectors of unit variance, the same in every world.

    Args:
        dim: width of the vectors.

    Returns:
        float32 (24, dim).
    """
    return np.random.default_rng(_APPEARANCE_SEED).standard_normal((len(LANDMARKS), dim), dtype=np.float32)


def place_landmarks(scan: Scan, generator: np.random.Generator) -> np.ndarray:
    """Put one landmark at each viewpoint so that no two neighbours of a viewpoint have the same.

    Args:
        scan: the graph.
        generator: random source of the choice.

    Returns:
        int64 (n,), numbers of landmarks.

    Raises:
        ValueError: if there are fewer landmarks than the graph needs.
    """
    # Viewpoints at most two edges apart must differ, or "to the sofa" would name two neighbours of one place.
    close = scan.adjacent | (scan.adjacent.astype(np.int64) @ scan.adjacent.astype(np.int64) > 0)
    chosen = np.full(len(scan), -1)
    for viewpoint in range(len(scan)):
        taken = chosen[close[viewpoint]]  # -1 where nothing stands yet
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
    """Return view features: each view shows the landmarks of the neighbours that lie in it, plus noise.

    A view spans more than the 30 degrees to the next one, like that of a camera, so a landmark is also
    visible, less clearly, in the views around the one that shows it best.

    Returns:
        float32 (n, 36, dim).
    """
    vectors = landmark_vectors(dim)
    # Noise in every view, so that a landmark is not recognized by the mere absence of zeros.
    pictures = noise * generator.standard_normal((len(scan), 36, dim), dtype=np.float32)
    i, slot = np.nonzero(scan.mask)
    shown, seen = scan.views[i, slot], vectors[landmarks[scan.neighbors[i, slot]]]
    for rise in (-1, 0, 1):
        row = shown // 12 + rise
        inside = (row >= 0) & (row < 3)
        for turn in (-1, 0, 1):
            strength = 1.0 if turn == rise == 0 else _BESIDE
            views = (shown + turn) % 12 + 12 * row
            np.add.at(pictures, (i[inside], views[inside]), strength * seen[inside])
    return pictures


def turn_words(turn: float, rise: float) -> str:
    """Describe a move by its turn in radians, positive to the right, and the elevation of the edge.

    Example:
        >>> turn_words(-1.5, 0.4), turn_words(0.1, 0.0)
        ('turn left and go up', 'go straight')
    """
    turn = wrap(turn)
    if abs(turn) < math.pi / 4:  # four sectors of 90 degrees
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
    scan: Scan,
    landmarks: np.ndarray,
    path: Sequence[int],
    heading: float,
    generator: np.random.Generator,
    *,
    turns: float = 1.0,
) -> str:
    """Write an instruction for a path, one clause per edge, naming the landmark at the end of each edge.

    Args:
        scan: the graph.
        landmarks: (n,) as `place_landmarks` returns them.
        path: viewpoints, at least one.
        heading: heading of the agent at the start, radians.
        generator: random source of the wording.
        turns: share of clauses that also say which way to turn; the others only name the landmark, so that
            the agent has to recognize it.
    """
    clauses = []
    for here, there in pairwise(path):
        slot = scan.slot(here, there)
        way = ""
        if generator.random() < turns:
            turn = float(scan.headings[here, slot]) - heading
            way = turn_words(turn, float(scan.elevations[here, slot])) + " "
        preposition = ("to", "toward", "past" if there != path[-1] else "to")[generator.integers(3)]
        clauses.append(f"{way}{preposition} the {LANDMARKS[landmarks[there]]}")
        heading = float(scan.headings[here, slot])  # turns are said relative to the last move
    joint = (" , ", " then ", " , then ")[generator.integers(3)]
    end = ("stop", "wait", "stop there")[generator.integers(3)]
    return joint.join([*clauses, end]) + " ."
