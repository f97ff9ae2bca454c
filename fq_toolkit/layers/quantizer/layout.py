"""One view of every feature layout: ``(B, C, P, Q)``, batch, channel and two position axes.

The kernels read features through strides, so bringing a layout into this form copies nothing (a
five-dimensional map whose position axes cannot be merged is the one exception).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fq_toolkit.kernels import private

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class FeatureLayout(NamedTuple):
    """How the features of one call are laid out.

    Attributes:
        channel_dim: the channel axis of the user's tensor, counted from the front.
        positions: sizes of the position axes, in order; empty for ``(B, C)``.
    """

    channel_dim: int
    positions: tuple[int, ...]


def resolve_channel_dim(ndim: int, channel_dim: int | None) -> int:
    """Return the channel axis: as given, else 1 for ``(B, C)`` and maps, the last for ``(B, L, C)``.

    Raises:
        ValueError: fewer than two axes, an axis that does not exist, or the batch axis.
    """
    if ndim < 2:
        raise ValueError(f"features need a batch and a channel axis; got a tensor of {ndim} dimension(s)")
    if channel_dim is None:
        return 2 if ndim == 3 else 1
    if not -ndim <= channel_dim < ndim:
        raise ValueError(f"channel_dim={channel_dim} does not exist in features of {ndim} dimensions")
    resolved = channel_dim % ndim
    if resolved == 0:
        raise ValueError(f"channel_dim={channel_dim} is the batch axis; features are batch first")
    return resolved


def check_features(x: Tensor, dim: int, channel_dim: int | None) -> FeatureLayout:
    """Validate the features of a call.

    Args:
        x: what the user passed.
        dim: the number of channels that the layer was built for.
        channel_dim: the channel axis, None for the rule of `resolve_channel_dim`.

    Returns:
        Their layout.

    Raises:
        TypeError: not a tensor of a real floating dtype.
        ValueError: another number of channels than ``dim``, no such axis, or two axes that may be meant.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"features must be a torch.Tensor, got {type(x).__name__}")
    if x.is_nested:
        raise TypeError(
            "features are a nested tensor; pad them, x.to_padded_tensor(0.0), and pass lengths= or mask="
        )
    if x.layout != torch.strided:
        raise TypeError(f"features must be a dense tensor, got {x.layout}; call to_dense() first")
    if x.dtype not in _DTYPES:
        raise TypeError(
            f"features must be float16, bfloat16, float32 or float64, got {x.dtype}; convert them first"
        )
    axis = resolve_channel_dim(x.ndim, channel_dim)
    # Not in an export: the comparison would bound a length that is to vary.
    if channel_dim is None and x.ndim == 3 and not private.under_export():
        if x.shape[1] == x.shape[2] == dim:
            raise ValueError(
                f"features of shape {tuple(x.shape)} have dim={dim} on both axes, which may be (B, L, C) or "
                "(B, C, T); build the layer with channel_dim=-1 for the first, 1 for the second"
            )
        if x.shape[1] == dim:
            raise ValueError(
                f"features of shape {tuple(x.shape)} are taken for (B, L, C), and this layer was built for "
                f"dim={dim}; if they are (B, C, T), as from a Conv1d, build it with channel_dim=1"
            )
    if x.shape[axis] != dim:
        raise ValueError(
            f"the features have {x.shape[axis]} channels on axis {axis} of shape {tuple(x.shape)}, but this "
            f"layer was built for dim={dim}; pass channel_dim= if the channels are on another axis"
        )
    return FeatureLayout(axis, tuple(size for i, size in enumerate(x.shape) if i not in (0, axis)))


def to_canonical(x: Tensor, layout: FeatureLayout) -> Tensor:
    """View ``x`` as ``(B, C, P, Q)``; positions keep their order, ``n = (b * P + p) * Q + q``."""
    x = x.movedim(layout.channel_dim, 1)
    if x.ndim == 2:
        return x[:, :, None, None]
    if x.ndim == 3:
        return x[:, :, None, :]
    if x.ndim == 4:
        return x
    for split in range(x.ndim - 1, 2, -1):  # axes 2 .. split-1 become P, the others Q
        if _mergeable(x, 2, split) and _mergeable(x, split, x.ndim):
            return x.flatten(split).flatten(2, split - 1)
    return x.flatten(3)


def from_canonical(features: Tensor, layout: FeatureLayout) -> Tensor:
    """Undo `to_canonical` for a result with the same or another number of channels."""
    shape = (features.shape[0], features.shape[1], *layout.positions)
    return features.reshape(shape).movedim(1, layout.channel_dim)


def _mergeable(x: Tensor, first: int, stop: int) -> bool:
    """Return whether the axes ``first .. stop-1`` can become one axis without a copy."""
    return all(
        x.stride(i) == x.stride(i + 1) * x.shape[i + 1] or x.shape[i] == 1 for i in range(first, stop - 1)
    )


def row_mask(
    mask: Tensor | None, lengths: Tensor | None, batch: int, layout: FeatureLayout, device: torch.device
) -> Tensor | None:
    """Return the mask of the rows, ``(N,)`` bool with True for real rows, or None when all are real.

    Args:
        mask: bool, ``(B, *positions)``: the shape of the features without the channel axis.
        lengths: integers, ``(B,)``: number of real positions of each sequence, 0 to L; for features with one
            position axis.
        batch: B.
        layout: the layout of the features.
        device: where the features are.

    Raises:
        TypeError: a mask that is not boolean, lengths that are not integers.
        ValueError: both given, a wrong shape, or lengths outside 0 to L (checked on the CPU).
    """
    if mask is None and lengths is None:
        return None
    expected = (batch, *layout.positions)
    if mask is not None:
        if lengths is not None:
            raise ValueError("pass mask or lengths, not both")
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            given = getattr(mask, "dtype", type(mask).__name__)
            raise TypeError(f"mask must be a bool tensor (True = real position), got {given}")
        if tuple(mask.shape) != expected:
            raise ValueError(
                f"mask has shape {tuple(mask.shape)}, expected {expected}: the shape of the features "
                "without their channel axis"
            )
        return mask.to(device).reshape(-1)
    if not isinstance(lengths, Tensor) or lengths.is_floating_point() or lengths.is_complex():
        given = getattr(lengths, "dtype", type(lengths).__name__)
        raise TypeError(f"lengths must be an integer tensor, got {given}")
    if len(layout.positions) != 1:
        raise ValueError(
            f"lengths needs features with one position axis such as (B, L, C), but these have "
            f"{len(layout.positions)}; pass mask instead"
        )
    if tuple(lengths.shape) != (batch,):
        raise ValueError(f"lengths has shape {tuple(lengths.shape)}, expected ({batch},): one per sequence")
    # On an accelerator looking at them would make every forward wait for it.
    if lengths.device.type == "cpu" and batch and not torch.compiler.is_compiling():
        low, high = (int(value) for value in lengths.aminmax())
        if low < 0 or high > layout.positions[0]:
            raise ValueError(
                f"lengths run from {low} to {high}, and the features have {layout.positions[0]} positions; "
                "give numbers from 0 to that"
            )
    steps = torch.arange(layout.positions[0], device=device)
    return (steps < lengths.to(device)[:, None]).reshape(-1)
