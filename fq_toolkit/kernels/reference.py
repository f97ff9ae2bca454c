"""The definition of every op in plain torch.

This file is the oracle of the fused kernels, the path taken where no fused kernel can run, and the place to
read what the layer computes.  It works through the rows in chunks, so that no N x K array ever exists.

Features are a four-dimensional view ``x`` of shape ``(B, C, P, Q)`` with any strides: batch, channel, two
position axes.  Row ``n = (b * P + p) * Q + q`` is the vector ``x[b, :, p, q]``; there are ``N = B * P * Q``
rows.

The nearest centroid of a row is defined by float64 direct differences, summed in channel order::

    dist(n, k) = sum_c (x[n, c] - codebook[k, c])^2
    index(n) = argmin_k dist(n, k), the lowest k on ties

Computing it that way for every pair is slow, so a coarse pass scores ``|c'|^2 / 2 - <x', c'>`` on centred
vectors together with a radius that bounds its own rounding error, and only codes whose interval reaches below
the best upper bound are compared by ``dist``.

Source: "Feature Quantization Improves GAN Training", arXiv 2004.02088, section 3.2 (lookup, loss and EMA
dictionary).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

#: Index of a row that holds a NaN or an infinity (also: no code of the dictionary is finite).
NONFINITE_ROW = -1
#: Index of a row that the mask excludes.
MASKED_ROW = -2

_CHUNK_ELEMENTS = 1 << 20  # scores per chunk: 8 MiB in float64, which stays in the last-level cache
_UNIT = 2.0**-53


def widest(device: torch.device) -> torch.dtype:
    """Return float64, or float32 where the device has nothing wider (Apple's MPS): sums are then less exact.

    The device is asked each time, which costs a microsecond or two: no list of devices would be complete.
    """
    try:
        torch.empty(0, dtype=torch.float64, device=device)
    except Exception:  # each device refuses in a way of its own
        return torch.float32
    return torch.float64


def check_exact(device: torch.device) -> None:
    """Refuse what is defined by float64 distances where there is no float64.

    Raises:
        ValueError: naming the option to change.
    """
    if widest(device) != torch.float64:
        raise ValueError(
            f'precision="exact" settles ties by float64 distances, which the device {device.type!r} cannot '
            'compute; build the layer with precision="fast", or run it on the CPU'
        )


def row_chunks(x: Tensor, num_codes: int) -> Iterator[tuple[int, int, Tensor]]:
    """Yield ``(start, stop, rows)``, the rows of one stretch of ``x`` as a ``(stop - start, C)`` copy."""
    batch, channels, height, width = x.shape
    total = batch * height * width
    step = max(1, _CHUNK_ELEMENTS // max(num_codes, channels, 1))
    by_row = x.permute(0, 2, 3, 1)
    for start in range(0, total, step):
        stop = min(start + step, total)
        n = torch.arange(start, stop, device=x.device)
        yield start, stop, by_row[n // (height * width), (n // width) % height, n % width]


def direct_distances(rows: Tensor, codes: Tensor) -> Tensor:
    """Compute (n, K) float64 squared distances of (n, C) and (K, C), summed in channel order."""
    rows, codes = rows.double(), codes.double()
    total = rows.new_zeros(rows.shape[0], codes.shape[0])
    for channel in range(rows.shape[1]):
        difference = rows[:, channel, None] - codes[None, :, channel]
        total += difference * difference
    return total


def nearest_code(rows: Tensor, codebook: Tensor, center: Tensor, exact: bool) -> Tensor:
    """Return the index of the nearest code of each row, as the module docstring defines it.

    Args:
        rows: finite features, ``(n, C)``.
        codebook: ``(K, C)``; a code with a non-finite entry never wins.
        center: ``(C,)``; any finite values are valid, a common offset of the features saves the most work.
        exact: False takes the best score of one float32 pass instead.

    Returns:
        ``(n,)`` int64 indices, -1 where no code is finite.

    Raises:
        ValueError: ``exact`` on a device without float64.
    """
    if exact:
        check_exact(rows.device)
    live = torch.isfinite(codebook).all(dim=1)
    codes = torch.where(live[:, None], codebook, torch.zeros_like(codebook))
    # Centred before they are multiplied: with a common offset the squares would cancel in |c|^2/2 - <x, c>,
    # and leave nothing of the digits that tell codes apart.
    working = torch.float64 if exact else torch.float32
    origin = torch.nan_to_num(center, nan=0.0, posinf=0.0, neginf=0.0).to(working)
    centred_codes = codes.to(working) - origin
    centred_rows = rows.to(working) - origin
    # |x|^2 is the same for all codes of a row and drops out of the comparison.
    half_norms = centred_codes.square().sum(dim=1) / 2
    scores = half_norms - centred_rows @ centred_codes.t()
    scores = torch.where(live, scores, torch.full_like(scores, float("inf")))
    best = scores.argmin(dim=1)
    if exact:
        # One radius covers both the rounding of the scores and that of `direct_distances`: each is at most (C
        # + 3) u (|x'| + |c'|)^2 up to second-order terms, and underflow adds less than C times the smallest
        # normal.
        channels = rows.shape[1]
        reach = centred_rows.square().sum(dim=1, keepdim=True).sqrt() + (2 * half_norms).sqrt()
        radius = 4 * (channels + 8) * _UNIT * reach.square() + channels * torch.finfo(torch.float64).tiny
        ceiling = (scores + radius).amin(dim=1, keepdim=True)
        # Written as "not above" so that an overflowed (NaN or infinite) interval stays a candidate.
        candidates = ~(scores - radius > ceiling) & live
        contested = (candidates.sum(dim=1) > 1).nonzero().squeeze(1)
        step = max(1, _CHUNK_ELEMENTS // codebook.shape[0])
        for part in contested.split(step):
            distances = direct_distances(rows[part], codes)
            distances = torch.where(candidates[part], distances, torch.full_like(distances, float("inf")))
            best[part] = distances.argmin(dim=1)
            # When every distance overflows, the lowest live code wins rather than the lowest code.
            lost = ~live[best[part]]
            best[part] = torch.where(lost, live.to(torch.int8).argmax(), best[part])
    return torch.where(live.any(), best, torch.full_like(best, NONFINITE_ROW))


def quantize_forward(
    x: Tensor,
    codebook: Tensor,
    center: Tensor,
    mask: Tensor | None,
    strength: float,
    with_output: bool,
    with_sums: bool,
    exact: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Look up every row, and gather what the layer needs from the lookup.

    Args:
        x: features ``(B, C, P, Q)``, float16, bfloat16, float32 or float64, any strides.
        codebook: ``(K, C)`` float32.
        center: ``(C,)`` float32, see `nearest_code`.
        mask: ``(N,)`` bool, True for real rows; None means that all are.
        strength: the output is ``x + strength * (q - x)``; 1 gives exactly ``q`` in the dtype of ``x``.
        with_output: False leaves the output empty.
        with_sums: False leaves the sums empty.
        exact: see `nearest_code`.

    Returns:
        ``(out, indices, sq_error, counts, sums)``: features like ``x``; ``(N,)`` int32, `NONFINITE_ROW` and
        `MASKED_ROW` for rows left alone; ``(B,)`` float32, the squared error of a sample summed over its
        valid rows; ``(K,)`` int64; ``(K, C)`` float32, the per-code sums of the valid rows, added in row
        order.
    """
    batch, channels, height, width = x.shape
    num_codes = codebook.shape[0]
    positions = height * width
    indices = torch.empty(batch * positions, dtype=torch.int32, device=x.device)
    wide = widest(x.device)
    row_error = torch.zeros(batch * positions, dtype=wide, device=x.device)
    sums = torch.zeros(num_codes if with_sums else 0, channels, dtype=wide, device=x.device)
    out = torch.empty_like(x) if with_output else x.new_empty(0)
    working = torch.float64 if x.dtype == torch.float64 else torch.float32
    for start, stop, rows in row_chunks(x, num_codes):
        finite = torch.isfinite(rows).all(dim=1)
        safe = torch.where(finite[:, None], rows, torch.zeros_like(rows))
        index = nearest_code(safe, codebook, center, exact)
        index = torch.where(finite, index, torch.full_like(index, NONFINITE_ROW))
        if mask is not None:
            index = torch.where(mask[start:stop], index, torch.full_like(index, MASKED_ROW))
        indices[start:stop] = index.to(torch.int32)
        valid = index >= 0
        quantized = codebook[index.clamp(min=0)]
        error = (safe.to(wide) - quantized.to(wide)).square().sum(dim=1)
        row_error[start:stop] = torch.where(valid, error, torch.zeros_like(error))
        if with_sums:
            kept = valid.nonzero().squeeze(1)
            # index_put_ with accumulation adds in row order, also on CUDA, where index_add_ would use float
            # atomics.
            sums.index_put_((index[kept],), safe[kept].to(wide), accumulate=True)
        if with_output:
            blended = rows.to(working) + strength * (quantized.to(working) - rows.to(working))
            target = quantized.to(working) if strength == 1.0 else blended
            n = torch.arange(start, stop, device=x.device)
            out.permute(0, 2, 3, 1)[n // positions, (n // width) % height, n % width] = torch.where(
                valid[:, None], target.to(x.dtype), rows
            )
    sq_error = row_error.view(batch, positions).sum(dim=1).float()
    counts = torch.bincount(indices[indices >= 0].long(), minlength=num_codes)
    return out, indices, sq_error, counts, sums.float()


def quantize_forward_traceable(
    x: Tensor,
    codebook: Tensor,
    center: Tensor,
    mask: Tensor | None,
    strength: float,
    with_output: bool,
    with_sums: bool,
    exact: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run `quantize_forward` without data-dependent shapes or loops, for `torch.export` and ONNX.

    The scores of all rows exist at once here, as an exported graph has no way to bound them; ``exact`` scores
    in float64 without re-scoring, so only distances that agree to 15 digits can be told apart differently.
    """
    batch, channels, height, width = x.shape
    num_codes = codebook.shape[0]
    rows = x.permute(0, 2, 3, 1).reshape(-1, channels)
    finite = torch.isfinite(rows).all(dim=1)
    safe = torch.where(finite[:, None], rows, torch.zeros_like(rows))
    live = torch.isfinite(codebook).all(dim=1)
    codes = torch.where(live[:, None], codebook, torch.zeros_like(codebook))
    working = torch.float64 if exact or x.dtype == torch.float64 else torch.float32
    wide, wide_codes = safe.to(working) - center.to(working), codes.to(working) - center.to(working)
    scores = wide_codes.square().sum(dim=1) / 2 - wide @ wide_codes.t()
    index = torch.where(live, scores, torch.full_like(scores, float("inf"))).argmin(dim=1)
    index = torch.where(finite & live.any(), index, torch.full_like(index, NONFINITE_ROW))
    if mask is not None:
        index = torch.where(mask, index, torch.full_like(index, MASKED_ROW))
    valid = (index >= 0)[:, None]
    quantized = codes[index.clamp(min=0)]
    residual = torch.where(valid, safe.to(working) - quantized.to(working), 0.0)
    sq_error = residual.square().reshape(batch, -1).sum(dim=1).float()
    chosen = index[:, None] == torch.arange(num_codes, device=x.device)
    counts = chosen.sum(dim=0)
    sums = chosen.to(working).t() @ safe.to(working) if with_sums else wide.new_zeros(0, channels)
    target = quantized.to(working) if strength == 1.0 else safe.to(working) - strength * residual
    out = (
        torch.where(valid, target.to(x.dtype), rows)
        .reshape(batch, height, width, channels)
        .permute(0, 3, 1, 2)
    )
    return out if with_output else x.new_zeros(0), index.to(torch.int32), sq_error, counts, sums.float()


def quantize_forward_transformable(
    x: Tensor,
    codebook: Tensor,
    center: Tensor,
    mask: Tensor | None,
    strength: float,
    with_output: bool,
    with_sums: bool,
    exact: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run `quantize_forward_traceable` with the gradients of `quantize_backward`, for `torch.func`.

    Every operation is torch's own and knows its derivatives and its batching.
    """
    out, indices, sq_error, counts, sums = quantize_forward_traceable(
        x, codebook, center, mask, strength, with_output, with_sums, exact
    )
    if with_output:  # straight through; x - x is zero, but for infinities, whose rows pass as they are
        out = torch.where(torch.isfinite(x), out.detach() + (x - x.detach()), x)
    return out, indices, sq_error, counts, sums


def quantize_backward(
    grad_out: Tensor, grad_error: Tensor, x: Tensor, codebook: Tensor, indices: Tensor
) -> Tensor:
    """Compute the gradient of `quantize_forward` with respect to ``x``.

    ``dx = grad_out + 2 * grad_error[b] * (x - q)`` for valid rows and ``grad_out`` for the others: the output
    passes its gradient straight through whatever the strength, and the squared error treats ``q`` as a
    constant.

    Args:
        grad_out: like ``x`` with any strides, or of shape ``(0,)`` for zero.
        grad_error: ``(B,)`` float32.
        x: features ``(B, C, P, Q)``.
        codebook: ``(K, C)`` float32, the dictionary that the forward pass used.
        indices: ``(N,)`` int32 of the forward pass.

    Returns:
        The gradient, with the shape and dtype of ``x``.
    """
    batch, _, height, width = x.shape
    working = torch.float64 if x.dtype == torch.float64 else torch.float32
    gradient = torch.empty_like(x)
    if indices.numel() == 0:
        return gradient
    by_row, grad_by_row = x.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
    for sample in range(batch):  # one sample at a time bounds the extra memory
        index = indices.view(batch, height, width)[sample]
        valid = (index >= 0)[..., None]
        rows = by_row[sample].to(working)
        quantized = codebook[index.clamp(min=0).long()].to(working)
        pull = 2 * grad_error[sample].to(working) * (rows - quantized)
        # Selected, not multiplied by zero: a row without a code may hold NaN.
        pull = torch.where(valid, pull, torch.zeros_like(pull))
        if grad_out.numel() > 0:
            pull = pull + grad_out[sample].permute(1, 2, 0).to(working)
        grad_by_row[sample] = pull.to(x.dtype)
    return gradient


def ema_commit_(
    codebook: Tensor,
    ema_counts: Tensor,
    ema_sums: Tensor,
    center: Tensor,
    num_updates: Tensor,
    counts: Tensor,
    sums: Tensor,
    decay: float,
    eps: float,
    debias: bool,
) -> None:
    """Move the dictionary towards the batch, in place.

    With ``n`` the moving counts, ``m`` the moving sums and ``l`` the decay (paper, equation 6, and the
    smoothing of the released code)::

        n <- l n + (1 - l) counts        m <- l m + (1 - l) sums
        E = m / ((n + eps) / (sum(n) + K eps) * sum(n))

    With ``debias`` both are divided by ``1 - l^t`` before ``E`` is formed.  A batch without a single valid
    row changes nothing, and a sum too large for float32 does not enter its moving sum,
    which would stay infinite for ever.  Everything happens without a look at a value from the host.

    Args:
        codebook: ``(K, C)`` float32, changed.
        ema_counts: ``(K,)`` float32, changed.
        ema_sums: ``(K, C)`` float32, changed.
        center: ``(C,)`` float32, changed: a moving mean of the features.
        num_updates: int64 scalar, changed: plus one.
        counts: ``(K,)``, integer or float32.
        sums: ``(K, C)`` float32.
        decay: ``l`` in [0, 1).
        eps: the smoothing constant.
        debias: see above.
    """
    wide = widest(counts.device)
    batch_rows = counts.to(wide).sum()
    active = batch_rows > 0
    num_updates += active.to(num_updates.dtype)
    new_counts = decay * ema_counts + (1 - decay) * counts.to(torch.float32)
    new_sums = torch.where(torch.isfinite(sums), decay * ema_sums + (1 - decay) * sums, ema_sums)
    # In float64: with a decay near 1 the difference would lose most digits of float32.
    correction = 1 - torch.pow(torch.tensor(decay, dtype=wide, device=counts.device), num_updates)
    scale = (1 / correction).to(torch.float32) if debias else torch.ones_like(correction, dtype=torch.float32)
    seen, moved = new_counts * scale, new_sums * scale
    total = seen.to(wide).sum().to(torch.float32)
    smoothed = (seen + eps) / (total + codebook.shape[0] * eps) * total
    new_codebook = moved / smoothed[:, None]
    mean = (sums.to(wide).sum(dim=0) / batch_rows).to(torch.float32)
    new_center = torch.where(torch.isfinite(mean), decay * center + (1 - decay) * mean, center)
    # Selected, not branched upon: a branch would wait for the device.
    codebook.copy_(torch.where(active, new_codebook, codebook))
    ema_counts.copy_(torch.where(active, new_counts, ema_counts))
    ema_sums.copy_(torch.where(active, new_sums, ema_sums))
    center.copy_(torch.where(active, new_center, center))
