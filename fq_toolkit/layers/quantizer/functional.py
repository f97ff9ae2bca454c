"""The lookup as a function, without a layer and without state."""

from __future__ import annotations

import torch
from torch import Tensor

from fq_toolkit.kernels import ops
from fq_toolkit.layers.codebook.statistics import perplexity
from fq_toolkit.layers.quantizer.layout import check_features, from_canonical, row_mask, to_canonical
from fq_toolkit.layers.quantizer.ledger import per_sample_loss
from fq_toolkit.layers.quantizer.results import QuantizerOutput


def quantize(
    x: Tensor,
    codebook: Tensor,
    *,
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
    precision: str = "exact",
    commitment: float = 1.0,
    channel_dim: int | None = None,
) -> QuantizerOutput:
    r"""Replace every feature vector by its nearest centroid.

    .. math:: i(n) = \arg\min_k |x_n - e_k|^2, \qquad q_n = e_{i(n)}, \qquad
              loss_b = \beta \, \mathrm{mean}_{c, p} (\mathrm{sg}(q) - x)^2

    The gradient passes straight through to ``x``; the codebook gets none.

    Args:
        x: features, ``(B, C)``, ``(B, L, C)``, ``(B, C, H, W)`` or ``(B, C, D, H, W)``.
        codebook: ``(K, C)``, any floating dtype; looked up in float32.
        mask: bool, True for real positions: the shape of ``x`` without the channel axis.
        lengths: ``(B,)`` integers, instead of a mask, for ``(B, L, C)``.
        precision: "exact" for the argmin of float64 distances, "fast" for the best score of one float32 pass.
        commitment: weight of the loss.
        channel_dim: the channel axis, if it is another.

    Returns:
        `QuantizerOutput`: quantized like ``x``, int64 indices, loss ``(B,)``, perplexity of this batch.

    Raises:
        TypeError: integer or complex features, or such a codebook.
        ValueError: a codebook that is not ``(K, C)`` with K and C at least 1, or is on another device, an
            unknown precision, a wrong mask shape.

    Example:
        >>> import torch
        >>> from fq_toolkit import quantize
        >>> quantize(torch.tensor([[0.9], [2.2]]), torch.tensor([[0.0], [1.0], [2.0]])).indices
        tensor([1, 2])

    Source: arXiv 2004.02088, equation 3.
    """
    if not isinstance(codebook, Tensor) or not codebook.is_floating_point():
        given = codebook.dtype if isinstance(codebook, Tensor) else type(codebook).__name__
        raise TypeError(f"codebook must be a floating-point tensor, got {given}")
    if codebook.layout != torch.strided:
        raise TypeError(f"codebook must be a dense tensor, got {codebook.layout}; call to_dense() first")
    if codebook.ndim != 2 or codebook.numel() < 1:
        raise ValueError(
            "codebook must be (K, C) with at least one code and one channel, got shape "
            f"{tuple(codebook.shape)}"
        )
    if isinstance(x, Tensor) and x.device != codebook.device:
        raise ValueError(f"x is on {x.device} and codebook on {codebook.device}; move one to the other")
    if precision not in ("exact", "fast"):
        raise ValueError(f"precision must be 'exact' or 'fast', got {precision!r}")
    layout = check_features(x, codebook.shape[1], channel_dim)
    rows = row_mask(mask, lengths, x.shape[0], layout, x.device)
    features = to_canonical(x, layout)
    codes = codebook.detach().float().contiguous()
    # Any center gives the same indices; one amid the codes keeps the most digits of the fast pass.
    center = torch.nan_to_num(codes.mean(dim=0), nan=0.0, posinf=0.0, neginf=0.0)
    out, indices, sq_error, counts, _ = ops.quantize_forward(
        features, codes, center, rows, 1.0, True, False, precision == "exact"
    )
    positions = features.shape[2] * features.shape[3]
    loss = per_sample_loss(sq_error, rows, x.shape[0], codes.shape[1], positions, commitment)
    indices = indices.clamp(min=-1).to(torch.int64).view(x.shape[0], *layout.positions)
    return QuantizerOutput(from_canonical(out, layout), indices, loss, perplexity(counts))
