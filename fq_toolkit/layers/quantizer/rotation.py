"""The rotation gradient: the quantized vector follows the feature as if rotated and rescaled with it."""

from __future__ import annotations

import torch
from torch import Tensor

_EPS = 1e-6


def rotate_gradient(x: Tensor, straight: Tensor, mask: Tensor | None) -> Tensor:
    r"""Return the quantized features with the gradient of a rotation and a rescaling of ``x``.

    .. math:: q = \lambda R x, \quad \lambda = |q| / |x|, \quad
              R = I - 2 r r^T + 2 \hat q \hat x^T, \quad r = (\hat x + \hat q) / |\hat x + \hat q|

    where :math:`\lambda` and :math:`R` count as constants.  Masked rows, rows that are not finite and rows
    without a direction (``x`` or ``q`` zero) keep the straight-through gradient.

    Args:
        x: features ``(B, C, P, Q)``.
        straight: the same features quantized, with the straight-through gradient.
        mask: ``(B, 1, P, Q)`` bool, True for real rows; None if all are.

    Returns:
        A tensor equal to ``straight``.

    Source: "Restructuring Vector Quantization with the Rotation Trick", arXiv 2410.06424, section 4.2.
    """
    with torch.no_grad():  # lambda and R are constants of the backward pass (their section 4.2)
        working = torch.promote_types(x.dtype, torch.float32)
        wide_x, wide_q = x.to(working), straight.to(working)
        norm_x, norm_q = wide_x.norm(dim=1, keepdim=True), wide_q.norm(dim=1, keepdim=True)
        rotatable = (norm_x > _EPS) & (norm_q > _EPS) & torch.isfinite(norm_x) & torch.isfinite(norm_q)
        rotatable = rotatable if mask is None else rotatable & mask
        unit_x = torch.where(rotatable, wide_x / norm_x, 0.0)
        unit_q = torch.where(rotatable, wide_q / norm_q, 0.0)
        r = unit_x + unit_q
        r = r / r.norm(dim=1, keepdim=True).clamp(min=_EPS)
        scale = torch.where(rotatable, norm_q / norm_x, 0.0)
    moving = torch.where(rotatable, x, torch.zeros_like(x)).to(working)
    moving = moving - moving.detach()  # zero in value; only its gradient matters
    along_r, along_x = (r * moving).sum(dim=1, keepdim=True), (unit_x * moving).sum(dim=1, keepdim=True)
    rotated = scale * (moving - 2 * r * along_r + 2 * unit_q * along_x)
    return torch.where(rotatable, straight.detach() + rotated.to(x.dtype), straight)
