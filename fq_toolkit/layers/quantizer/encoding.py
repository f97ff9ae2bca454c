"""Between the user's features and those of the dictionary: heads, projections and unit vectors."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


def refuse_nonfinite(canonical: Tensor, mask: Tensor | None) -> None:
    """Refuse a real row that holds a NaN or an infinity.

    Args:
        canonical: features ``(B, C, P, Q)``.
        mask: ``(N,)`` bool or None.

    Raises:
        ValueError: naming the first such row.
    """
    bad = ~torch.isfinite(canonical).all(dim=1).reshape(-1)
    bad = bad if mask is None else bad & mask
    if torch.compiler.is_compiling():
        torch._assert_async(~bad.any(), 'FeatureQuantizer(nonfinite="raise"): features hold NaN or Inf')
    elif bool(bad.any()):
        rows = bad.nonzero().squeeze(1)
        raise ValueError(
            f"{rows.numel()} of {bad.numel()} feature vectors hold NaN or Inf, the first at row "
            f'{int(rows[0])}; nonfinite="skip" passes them through instead'
        )


def repeat_for_heads(mask: Tensor | None, batch: int, heads: int) -> Tensor | None:
    """Return the mask of the rows of all heads, in the order of `encode`: ``(B * heads * positions,)``."""
    if mask is None or heads == 1:
        return mask
    return mask.view(batch, mask.numel() // max(batch, 1)).repeat_interleave(heads, dim=0).reshape(-1)


def encode(
    canonical: Tensor, mask: Tensor | None, heads: int, project_in: nn.Linear | None, unit: bool
) -> tuple[Tensor, Tensor]:
    """Turn features into those that are looked up.

    Args:
        canonical: ``(B, C, P, Q)``.
        mask: ``(N,)`` bool or None.
        heads: into how many parts the channels are split.
        project_in: to the channels of all heads, or None.
        unit: scale each part to unit length.

    Returns:
        Features ``(B * heads, codebook_dim, P, Q)``, and ``(B, 1, P, Q)`` bool: the rows that were
        transformed.
    """
    batch, _, height, width = canonical.shape
    usable = torch.isfinite(canonical).all(dim=1, keepdim=True)
    if mask is not None:
        usable = usable & mask.view(batch, 1, height, width)
    # A row that is masked or not finite must not be multiplied by a weight: 0 * NaN in the backward pass
    # would make the weight's gradient NaN as well.
    features = torch.where(usable, canonical, torch.zeros_like(canonical))
    if project_in is not None:
        features = project_in(features.movedim(1, -1)).movedim(-1, 1)
    if heads > 1:
        features = rearrange(features, "b (h c) p q -> (b h) c p q", h=heads)
    if unit:
        # In half precision the lengths would be off by more than what separates codes.
        features = F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1)
    # Those rows enter the lookup as NaN, which leaves them alone there.
    blocked = ~usable if heads == 1 else (~usable).repeat_interleave(heads, dim=0)
    return features.masked_fill(blocked, float("nan")), usable


def restore(
    out: Tensor, canonical: Tensor, usable: Tensor, heads: int, project_out: nn.Linear | None
) -> Tensor:
    """Undo `encode` on quantized features; rows that were not transformed are the user's own.

    Args:
        out: ``(B * heads, codebook_dim, P, Q)``.
        canonical: what was given to `encode`.
        usable: what it returned.
        heads: as there.
        project_out: back to the channels of the user, or None.

    Returns:
        Like ``canonical``.
    """
    if heads > 1:
        out = rearrange(out, "(b h) c p q -> b (h c) p q", h=heads)
    if project_out is not None:
        out = torch.where(usable, out, torch.zeros_like(out))  # no NaN times a weight, as in `encode`
        out = project_out(out.movedim(1, -1).to(project_out.weight.dtype)).movedim(-1, 1)
    return torch.where(usable, out.to(canonical.dtype), canonical)


def check_indices(indices: Tensor, heads: int, num_codes: int) -> None:
    """Refuse indices that are none of this dictionary.

    Raises:
        TypeError: not integers.
        ValueError: a wrong axis of heads, or an index outside the dictionary (checked on the CPU).
    """
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise TypeError(f"indices must be integers, got {indices.dtype}")
    if heads > 1 and (indices.ndim < 2 or indices.shape[-1] != heads):
        raise ValueError(f"indices must end with an axis of {heads} heads, got shape {tuple(indices.shape)}")
    # On an accelerator looking at them would make the caller wait for it.
    if indices.device.type == "cpu" and indices.numel() and not torch.compiler.is_compiling():
        low, high = (int(value) for value in indices.aminmax())
        if low < -1 or high >= num_codes:
            raise ValueError(
                f"indices run from {low} to {high}; this dictionary has codes 0 to {num_codes - 1}"
            )


def decode(
    codebook: Tensor, indices: Tensor, heads: int, project_out: nn.Linear | None, channel_dim: int | None
) -> Tensor:
    """Turn indices into features, contiguous in the layout of the layer's input.

    Args:
        codebook: ``(K, codebook_dim)``.
        indices: integers, with a last axis of heads if there are several; a negative one gives zeros.
        heads: how many indices a feature vector has.
        project_out: back to the channels of the user, or None.
        channel_dim: the layer's.
    """
    valid = (indices >= 0)[..., None]
    codes = codebook[indices.clamp(min=0).long()]
    if heads > 1:
        valid, codes = valid.all(dim=-2), codes.flatten(-2)
    if project_out is not None:
        codes = project_out(codes.to(project_out.weight.dtype))
    codes = torch.where(valid, codes, torch.zeros_like(codes))
    axis = channel_dim % codes.ndim if channel_dim is not None else (2 if codes.ndim == 3 else 1)
    return codes.movedim(-1, axis).contiguous()
