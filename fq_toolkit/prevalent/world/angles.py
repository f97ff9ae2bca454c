"""Headings, the 36 views, and angle features. Angles are radians; headings run clockwise from +y.

View ``v`` looks at heading ``30 (v mod 12)`` degrees and elevation ``30 (v div 12 - 1)`` degrees.
"""

import math
from typing import Any, Literal

import numpy as np
import torch

VIEWS = 36
"""Views of a panorama: 12 headings on each of three elevations."""

STEP = math.pi / 6
"""Angle between neighbouring views, 30 degrees."""

VIEW_HEADINGS = np.arange(VIEWS) % 12 * STEP
VIEW_ELEVATIONS = (np.arange(VIEWS) // 12 - 1) * STEP

Layout = Literal["blocked", "interleaved"]
LAYOUTS = ("blocked", "interleaved")


def wrap(angle: Any) -> Any:
    """Wrap angles into [-pi, pi): ``(a + pi) mod 2 pi - pi``; floats, arrays or tensors.

    Example:
        >>> round(wrap(1.5 * math.pi) / math.pi, 6)
        -0.5
    """
    return (angle + math.pi) % (2 * math.pi) - math.pi


def snap(heading: float, elevation: float) -> tuple[float, float, int]:
    """Snap a direction to the nearest of the 36 views, as the simulator does.

    The heading is rounded to the nearest multiple of 30 degrees, halves away from zero; the elevation to -30,
    0 or 30 degrees with borders at -15 and 15, which themselves belong to 0.

    Args:
        heading: radians, any.
        elevation: radians, any.

    Returns:
        heading in [0, 2 pi), elevation, and the index ``heading_step + 12 * {0 down, 1 level, 2 up}``.

    Example:
        >>> snap(math.radians(359), 0.0)
        (0.0, 0.0, 12)
        >>> snap(math.radians(100), math.radians(16))[2]
        27

    Source: Matterport3DSimulator with discretized viewing angles.
    """
    # In this order, and with fmod instead of %, every bit is that of the simulator: near a border between two
    # views one rounding more would choose the other view.
    steps = math.fmod(heading, 2 * math.pi)
    if steps < 0:
        steps += 2 * math.pi
    steps /= STEP
    whole = math.floor(steps)
    step = (whole + (steps - whole >= 0.5)) % 12  # Python's round() would round halves to even
    row = 1 + (elevation > STEP / 2) - (elevation < -STEP / 2)
    return step * STEP, (row - 1) * STEP, step + 12 * row


def nearest_view(heading: np.ndarray, elevation: np.ndarray) -> np.ndarray:
    """Return the view closest to a direction: the least ``sqrt(rel_heading^2 + rel_elevation^2)``.

    Among equally close views the lowest number wins.

    Args:
        heading: radians, any shape.
        elevation: radians, the same shape.

    Returns:
        int64 of that shape, 0 to 35.

    Example:
        >>> nearest_view(np.radians([0.0, 44.0, -31.0]), np.radians([0.0, 50.0, -20.0])).tolist()
        [12, 25, 11]
    """
    # Differences of heading wrap around, those of elevation do not.
    gap = wrap(np.asarray(heading)[..., None] - VIEW_HEADINGS)
    rise = np.asarray(elevation)[..., None] - VIEW_ELEVATIONS
    return np.argmin(gap * gap + rise * rise, axis=-1)


def check_layout(layout: str, dim: int) -> None:
    """Check the settings of angle features.

    Raises:
        ValueError: for an unknown layout, or a width that is not a multiple of 4.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(map(repr, LAYOUTS))}, got {layout!r}")
    if dim < 4 or dim % 4:
        raise ValueError(f"the width of angle features must be a positive multiple of 4, got {dim}")


def angle_features(heading: Any, elevation: Any, *, layout: Layout, dim: int = 128) -> Any:
    """Return the sines and cosines of a direction, each repeated ``dim / 4`` times.

    ``blocked`` is ``[sin h]*32, [cos h]*32, [sin e]*32, [cos e]*32`` (pretraining, HANNA); ``interleaved`` is
    ``[sin h, cos h, sin e, cos e]*32`` (fine-tuning on R2R). Headings are relative to the agent's heading,
    elevations are absolute.

    Args:
        heading: radians; a float, an array or a tensor of any shape.
        elevation: radians, of the same kind and shape.
        layout: ``"blocked"`` or ``"interleaved"``.
        dim: width, a multiple of 4.

    Returns:
        float32 (..., dim): an array, or a tensor for tensors.

    Raises:
        ValueError: for an unknown layout or width.

    Example:
        >>> angle_features(0.0, 0.0, layout="interleaved", dim=8).tolist()
        [0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0]
        >>> angle_features(0.0, 0.0, layout="blocked", dim=8).tolist()
        [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0]

    Source: blocked from speaker_follower and the pretraining code, interleaved from R2R-EnvDrop.
    """
    check_layout(layout, dim)
    repeats = dim // 4  # four numbers would drown in the 2048 of the image
    # The two branches agree up to the rounding of sine and cosine in torch and numpy.
    if isinstance(heading, torch.Tensor):
        four = torch.stack([heading.sin(), heading.cos(), elevation.sin(), elevation.cos()], dim=-1).float()
        if layout == "blocked":
            return four.repeat_interleave(repeats, dim=-1)
        return four.repeat(*[1] * (four.ndim - 1), repeats)
    pieces = [np.sin(heading), np.cos(heading), np.sin(elevation), np.cos(elevation)]
    rows = np.stack(pieces, axis=-1).astype(np.float32)
    if layout == "blocked":
        return np.repeat(rows, repeats, axis=-1)
    return np.tile(rows, [1] * (rows.ndim - 1) + [repeats])


def view_angle_features(*, layout: Layout, dim: int = 128) -> np.ndarray:
    """Return the angle features of all views, relative to each of the 12 headings.

    Row ``[s, v]`` describes view ``v`` (absolute order) to an agent with heading ``30 s`` degrees. Turning
    the agent permutes the rows exactly, because the steps are subtracted as integers.

    Args:
        layout: as in `angle_features`.
        dim: width.

    Returns:
        float32 (12, 36, dim).

    Example:
        >>> view_angle_features(layout="blocked").shape
        (12, 36, 128)
    """
    views = np.arange(VIEWS)
    # Integers first: angles computed from the same integer are equal to the last bit.
    turned = (views[None, :] - np.arange(12)[:, None]) % 12
    heading = turned * STEP
    elevation = np.broadcast_to(VIEW_ELEVATIONS, heading.shape)
    return angle_features(heading, elevation, layout=layout, dim=dim)
