"""Paths between latents, and latent arithmetic.

Source: arXiv 2004.04092, section 4.2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fq_toolkit.layers.checks import one_of

KINDS = ("linear", "spherical")


def interpolate_latents(a: Tensor, b: Tensor, steps: int, *, kind: str = "linear") -> Tensor:
    """Return latents on the way from a to b, both included.

    - linear: ``z_t = (1 - t) a + t b`` (arXiv 2004.04092, section 4.2);
    - spherical: ``z_t = (sin((1 - t) w) a + sin(t w) b) / sin w`` with w the angle between a and b. It keeps
      the length where a and b have the same length, and falls back to the linear path where they are
      parallel, opposite or zero.

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
        # Between opposite vectors every arc is as short as the others, and sin w divides by almost 0.
        if float(angle.sin()) > 1e-6:
            from_a, from_b = ((angle * share).sin() / angle.sin() for share in (1 - t, t))
    path = from_a * a + from_b * b
    return torch.cat([a[None], path[1:-1], b[None]])  # the ends without rounding


def _angle(a: Tensor, b: Tensor) -> Tensor:
    """Return the angle between two vectors; 0 where one of them is zero."""
    if not (a.any() and b.any()):
        return a.new_zeros(())
    unit_a, unit_b = a / a.norm(), b / b.norm()
    # arccos of the scalar product loses half of the digits where the angle is small; this form does not.
    return 2 * torch.atan2((unit_a - unit_b).norm(), (unit_a + unit_b).norm())


def analogy_latents(a: Tensor, b: Tensor, c: Tensor, degree: float = 1.0) -> Tensor:
    """Compute ``z_d = z_c + degree (z_b - z_a)``, so that d is to c as b is to a. All have the same shape.

    Source: arXiv 2004.04092, section 4.2 (latent vector arithmetic), where the degree is 1.
    """
    return c + degree * (b - a)
