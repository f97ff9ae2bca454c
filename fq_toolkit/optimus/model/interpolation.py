"""Paths between latents, and sums of latents."""

from __future__ import annotations

import torch
from torch import Tensor

from fq_toolkit.layers.checks import one_of

KINDS = ("linear", "spherical")


def interpolate_latents(a: Tensor, b: Tensor, steps: int, *, kind: str = "linear") -> Tensor:
    """Latents on the way from a to b, both included.

    Linear: ``(1 - t) a + t b``.  Spherical: ``(sin((1 - t) w) a + sin(t w) b) / sin w`` with w the angle
    between a and b, which keeps the length where a and b have the same; where they are parallel, opposite or
    zero it is the linear one.

    Args:
        a: (nz,) at t = 0.
        b: (nz,) at t = 1.
        steps: how many latents, at least 2.
        kind: "linear" or "spherical".

    Returns:
        (steps, nz).

    Raises:
        ValueError: fewer than two steps, another kind, or latents of different shapes.

    Example:
        >>> import torch
        >>> a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
        >>> interpolate_latents(a, b, 3).tolist()
        [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
        >>> interpolate_latents(a, b, 3, kind="spherical").norm(dim=1).round(decimals=3).tolist()
        [1.0, 1.0, 1.0]
    """
    one_of("kind", kind, KINDS)
    if steps < 2:
        raise ValueError(f"steps must be at least 2, for the two ends; got {steps}")
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"expected two latents (nz,), got {tuple(a.shape)} and {tuple(b.shape)}")
    t = torch.linspace(0, 1, steps, dtype=a.dtype, device=a.device)[:, None]
    from_a, from_b = 1 - t, t
    if kind == "spherical":
        angle = _angle(a, b)
        if float(angle.sin()) > 1e-6:
            from_a, from_b = ((angle * share).sin() / angle.sin() for share in (1 - t, t))
    path = from_a * a + from_b * b
    return torch.cat([a[None], path[1:-1], b[None]])  # the ends exactly


def _angle(a: Tensor, b: Tensor) -> Tensor:
    """The angle between two vectors, exact also where it is small; 0 where one of them is zero."""
    if not (a.any() and b.any()):
        return a.new_zeros(())
    unit_a, unit_b = a / a.norm(), b / b.norm()
    return 2 * torch.atan2((unit_a - unit_b).norm(), (unit_a + unit_b).norm())


def analogy_latents(a: Tensor, b: Tensor, c: Tensor, degree: float = 1.0) -> Tensor:
    """``c + degree (b - a)``: what b is to a, for c. All of the same shape."""
    return c + degree * (b - a)
