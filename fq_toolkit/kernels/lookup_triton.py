"""Nearest centroid of every row, exact at the price of a coarse search: two launches, no N x K array.

`_coarse_kernel` scores every code with a fast matrix product, keeps the best and the second-best lower bound
of a row, and writes everything that the layer needs of the winner.  Rows whose bounds do not separate the
winner from the rest (`fq_toolkit.kernels.certificate` derives the bounds) leave a note in the indices, and
`_rescore_kernel` settles those by float64 direct differences in channel order, the definition in
`fq_toolkit.kernels.reference`.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from fq_toolkit.kernels.certificate import LARGEST_NORM, certificate, direct_error
from fq_toolkit.kernels.launch import INTERPRETER, LaunchConfig, device_capability, launch_config
from fq_toolkit.kernels.rows_triton import row_geometry, row_offset, store_rounded

_SAFE_NORM: tl.constexpr = tl.constexpr(LARGEST_NORM)
_NO_CODE: tl.constexpr = tl.constexpr(2**31 - 1)  # above every index: loses each minimum
_LARGEST: tl.constexpr = tl.constexpr(3.4028234663852886e38)


# Not specialized: a number of rows that is a multiple of 16 would compile a kernel of its own.
@triton.jit(do_not_specialize=["num_rows"])
def _coarse_kernel(
    x,
    codebook,
    center,
    mask,
    out,
    indices,
    row_error,
    tickets,
    num_rows,
    num_codes,
    size_p,
    size_q,
    x_b,
    x_c,
    x_p,
    x_q,
    out_b,
    out_c,
    out_p,
    out_q,
    alpha,
    beta,
    gamma,
    tiny,
    strength,
    strength_low,
    DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DOT: tl.constexpr,
    WIDE: tl.constexpr,
    EXACT: tl.constexpr,
    WITH_OUTPUT: tl.constexpr,
    HAS_MASK: tl.constexpr,
    FULL_STRENGTH: tl.constexpr,
    TICKETS: tl.constexpr,
):
    """Find each row's best code by the lower bound ``|c'|^2/2 - <x', c'> - r`` of its score.

    Here x' = x - mu and c' = c - mu, and r is the radius of `fq_toolkit.kernels.certificate`.
    A program owns `BLOCK_N` rows and walks over the codes in ascending tiles, keeping the best bound with its
    code and the second-best bound of every row: equal bounds go to the lowest code, within a tile and between
    tiles.  Subtracting each partial product from the accumulator, rather than adding it, keeps the compiler
    from chaining the partial products into one long tensor-core accumulation, whose error would grow with the
    number of channels.

    Of the winner: out = x + strength (q - x), row_error = |x - q|^2.  Index -1 marks a row with a NaN or an
    infinity, -2 a masked row, and -3 - k a row whose candidate k is not certified.

    The first program clears the `tickets` of the sums, which saves those a launch.
    """
    if TICKETS > 0:
        if tl.program_id(0) == 0:
            tl.store(tickets + tl.arange(0, TICKETS), tl.zeros([TICKETS], tl.int32))
    work = tl.float64 if WIDE else tl.float32
    inf = float("inf")
    # 64 bits: the offset of a row may pass 2^31 elements.
    o_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, BLOCK_D)
    o_k = tl.arange(0, BLOCK_K)
    m_n = o_n < num_rows
    p_x = x + row_offset(o_n, size_p, size_q, x_b, x_p, x_q)

    # The rows once, for their norms and for what is not finite; they stay when all channels fit in one tile.
    b_square = tl.zeros([BLOCK_N], tl.float32)
    b_bad = tl.zeros([BLOCK_N], tl.int32)
    b_x = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for i_d in range(0, DIM, BLOCK_D):
        d = i_d + o_d
        m_d = d < DIM
        m_tile = m_n[:, None] & m_d[None, :]
        raw = tl.load(p_x[:, None] + d.to(tl.int64)[None, :] * x_c, mask=m_tile, other=0.0).to(work)
        b_mu = tl.load(center + d, mask=m_d, other=0.0)
        # Any center is right, but a NaN in it would spoil the bounds of every row.
        b_mu = tl.where(tl.abs(b_mu) < inf, b_mu, 0.0)
        m_finite = tl.abs(raw) < inf
        b_x = tl.where(m_tile & m_finite, raw - b_mu.to(work)[None, :], 0.0).to(tl.float32)
        b_bad += tl.sum(m_finite.to(tl.int32) ^ 1, axis=1)
        b_square += tl.sum(b_x * b_x, axis=1)
    # The radius alpha |x'||c'| + beta |c'|^2/2 + (gamma |x'|^2 + tiny ...): the part that differs from code
    # to code is taken off each score below; what is the same for all codes of a row is added at the end.
    b_norm = tl.sqrt(b_square + tiny)
    b_slope = alpha * b_norm + tiny

    b_best = tl.full([BLOCK_N], inf, tl.float32)
    b_second = tl.full([BLOCK_N], inf, tl.float32)
    b_index = tl.zeros([BLOCK_N], tl.int32)
    b_unsafe = tl.zeros([BLOCK_K], tl.int32)
    for i_k in range(0, num_codes, BLOCK_K):
        k = i_k + o_k
        m_k = k < num_codes
        p_codes = codebook + k.to(tl.int64) * DIM
        b_score = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        b_code_square = tl.zeros([BLOCK_K], tl.float32)
        b_code_bad = tl.zeros([BLOCK_K], tl.int32)
        for i_d in range(0, DIM, BLOCK_D):
            d = i_d + o_d
            m_d = d < DIM
            m_code = m_k[:, None] & m_d[None, :]
            b_c = tl.load(p_codes[:, None] + d[None, :], mask=m_code, other=0.0)
            b_mu = tl.load(center + d, mask=m_d, other=0.0)
            b_mu = tl.where(tl.abs(b_mu) < inf, b_mu, 0.0)
            m_finite = tl.abs(b_c) < inf
            b_code_bad += tl.sum(m_finite.to(tl.int32) ^ 1, axis=1)
            b_c = tl.where(m_code & m_finite, b_c - b_mu[None, :], 0.0)
            b_code_square += tl.sum(b_c * b_c, axis=1)
            if DIM > BLOCK_D:  # else the rows are still there from the loop above
                m_tile = m_n[:, None] & m_d[None, :]
                raw = tl.load(p_x[:, None] + d.to(tl.int64)[None, :] * x_c, mask=m_tile, other=0.0).to(work)
                m_tile = m_tile & (tl.abs(raw) < inf)
                b_x = tl.where(m_tile, raw - b_mu.to(work)[None, :], 0.0).to(tl.float32)
            b_score = b_score - tl.dot(b_x, tl.trans(b_c), input_precision=DOT)
        m_valid = m_k & (b_code_bad == 0)
        if EXACT:
            b_code_norm = tl.sqrt(b_code_square + tiny)
            m_safe = b_code_norm < _SAFE_NORM
            b_unsafe += (m_valid & (m_safe == 0)).to(tl.int32)
            # A code of unsafe norm leaves the race here, and `b_unsafe` sends every row to float64.
            b_base = tl.where(m_valid & m_safe, 0.5 * b_code_square * (1.0 - beta), inf)
            b_score = b_score - b_slope[:, None] * b_code_norm[None, :] + b_base[None, :]
        else:
            b_score = b_score + (0.5 * b_code_square)[None, :]
            b_score = tl.where(
                b_score < _LARGEST, b_score, _LARGEST
            )  # NaN included: an overflow loses to the rest
            b_score = tl.where(m_valid[None, :], b_score, inf)
        # Not `tl.argmin`, which is undefined on NaN.
        b_tile_best = tl.min(b_score, axis=1)
        b_tile_index = tl.min(tl.where(b_score == b_tile_best[:, None], k[None, :], _NO_CODE), axis=1)
        better = b_tile_best < b_best  # strict: a tie stays with the lower code
        if EXACT:
            # Only the winner itself is taken out: another code with an equal bound remains a rival.
            b_rest = tl.where(k[None, :] == b_tile_index[:, None], inf, b_score)
            b_second = tl.minimum(
                b_second, tl.minimum(tl.maximum(b_tile_best, b_best), tl.min(b_rest, axis=1))
            )
        b_best = tl.where(better, b_tile_best, b_best)
        b_index = tl.where(better, b_tile_index, b_index)
    found = b_best < inf

    m_real = m_n
    if HAS_MASK:
        m_real = m_n & (tl.load(mask + o_n, mask=m_n, other=0) != 0)
    m_valid_row = m_real & (b_bad == 0)
    if not EXACT:
        m_valid_row = m_valid_row & found
    p_out = out + row_offset(o_n, size_p, size_q, out_b, out_p, out_q)
    b_error = tl.zeros([BLOCK_N], work)
    b_code_square = tl.zeros([BLOCK_N], tl.float32)
    for i_d in range(0, DIM, BLOCK_D):
        d = i_d + o_d
        m_d = d < DIM
        m_tile = m_n[:, None] & m_d[None, :]
        raw = tl.load(p_x[:, None] + d.to(tl.int64)[None, :] * x_c, mask=m_tile, other=0.0).to(work)
        b_q = tl.load(codebook + b_index.to(tl.int64)[:, None] * DIM + d[None, :], mask=m_tile, other=0.0)
        b_mu = tl.load(center + d, mask=m_d, other=0.0)
        b_mu = tl.where(tl.abs(b_mu) < inf, b_mu, 0.0)
        b_c = tl.where(m_tile, b_q - b_mu[None, :], 0.0)
        b_code_square += tl.sum(b_c * b_c, axis=1)
        b_q = b_q.to(work)
        b_diff = raw - b_q  # the score would cancel: the error is taken from the difference itself
        b_error += tl.sum(b_diff * b_diff, axis=1)
        if WITH_OUTPUT:
            if FULL_STRENGTH:
                b_out = b_q
            else:
                # Triton passes floats in 32 bits: a float64 strength comes in two parts.
                b_out = raw + (tl.full([], strength, work) + tl.full([], strength_low, work)) * (b_q - raw)
            b_out = tl.where(m_valid_row[:, None], b_out, raw)
            store_rounded(p_out[:, None] + d.to(tl.int64)[None, :] * out_c, b_out, m_tile)

    if EXACT:
        radius = b_slope * tl.sqrt(b_code_square + tiny) + beta * 0.5 * b_code_square
        radius += gamma * b_norm * b_norm + tiny * (1.0 + b_norm)
        certain = found & (b_norm < _SAFE_NORM) & (tl.sum(b_unsafe, axis=0) == 0)
        # best + 2 r bounds the winner from above; the lower bound of every other code must lie beyond.
        certain = certain & (b_second > b_best + 2.0 * radius)
        b_index = tl.where(certain, b_index, -3 - b_index)
    else:
        b_index = tl.where(found, b_index, -1)
    b_index = tl.where(b_bad == 0, b_index, -1)
    b_index = tl.where(m_real, b_index, -2)
    tl.store(indices + o_n, b_index, mask=m_n)
    tl.store(row_error + o_n, tl.where(m_valid_row, b_error, 0.0).to(tl.float32), mask=m_n)


@triton.jit
def _direct_square(
    p_x, x_c, p_codes, m_k, dim, CODES: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr
):
    """Compute |x - c|^2 of one row and a tile of codes in float32, and whether the codes are finite."""
    work = tl.float64 if WIDE else tl.float32
    total = tl.zeros([CODES], tl.float32)
    bad = m_k.to(tl.int32) ^ 1
    for i_d in range(0, dim, BLOCK_D):
        d = i_d + tl.arange(0, BLOCK_D)
        m_d = d < dim
        b_x = tl.load(p_x + d.to(tl.int64) * x_c, mask=m_d, other=0.0).to(work)
        b_c = tl.load(p_codes[:, None] + d[None, :], mask=m_k[:, None] & m_d[None, :], other=0.0)
        b_diff = (b_x[None, :] - b_c.to(work)).to(tl.float32)
        total += tl.sum(b_diff * b_diff, axis=1)
        bad += tl.sum((tl.abs(b_c) < float("inf")).to(tl.int32) ^ 1, axis=1)
    return total, bad == 0


@triton.jit(do_not_specialize=["num_rows"])
def _rescore_kernel(
    x,
    codebook,
    out,
    indices,
    row_error,
    num_rows,
    num_codes,
    dim,
    size_p,
    size_q,
    x_b,
    x_c,
    x_p,
    x_q,
    out_b,
    out_c,
    out_p,
    out_q,
    relative,
    tiny,
    strength,
    strength_low,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
    WITH_OUTPUT: tl.constexpr,
    FULL_STRENGTH: tl.constexpr,
):
    """Find argmin_k sum_c (x[n, c] - e[k, c])^2 in float64 and channel order, for rows marked -3 - k.

    A program owns `BLOCK_N` rows, is done at once when none of them is marked, and otherwise takes the marked
    ones in turn.  Direct differences in float32 have a small *relative* error, whatever the offset of the
    data, so one sweep over the codes leaves only those to float64 that lie within that error of the best seen
    so far; the sweep starts from the candidate of the coarse search, hence usually only the true contenders
    are left.

    Must be compiled without floating-point contraction: a fused multiply-add would change the last bit of a
    distance.
    """
    work = tl.float64 if WIDE else tl.float32
    inf = float("inf")
    i_n = tl.program_id(0).to(tl.int64) * BLOCK_N
    o_n = tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, BLOCK_D)
    o_k = tl.arange(0, BLOCK_K)
    o_seed = tl.arange(0, 16)
    b_mark = tl.load(indices + i_n + o_n, mask=i_n + o_n < num_rows, other=0)
    i_row = tl.min(tl.where(b_mark <= -3, o_n, BLOCK_N), axis=0)
    while i_row < BLOCK_N:
        # The candidate's own distance gives a ceiling to start from, so that few codes pass even in the first
        # tile.
        seed = tl.max(tl.where(o_n == i_row, -3 - b_mark, 0), axis=0)
        n = i_n + i_row
        p_x = x + row_offset(n, size_p, size_q, x_b, x_p, x_q)

        # A tile of sixteen equal codes, of which the first counts: `_direct_square` takes tiles only.
        p_seed = codebook + (o_seed * 0 + seed).to(tl.int64) * dim
        b_seed, m_seed = _direct_square(p_x, x_c, p_seed, o_seed == 0, dim, 16, BLOCK_D, WIDE)
        ceiling = tl.min(tl.where(m_seed, b_seed * (1.0 + relative) + tiny, inf), axis=0)

        best = tl.full([], inf, tl.float64)
        index = tl.full([], -1, tl.int32)
        for i_k in range(0, num_codes, BLOCK_K):
            k = i_k + o_k
            p_codes = codebook + k.to(tl.int64) * dim
            b_square, m_valid = _direct_square(p_x, x_c, p_codes, k < num_codes, dim, BLOCK_K, BLOCK_D, WIDE)
            upper = tl.where(m_valid, b_square * (1.0 + relative) + tiny, inf)
            ceiling = tl.minimum(ceiling, tl.min(upper, axis=0))
            # An overflowed square says only that the distance is large.
            lower = tl.where(b_square < _LARGEST, b_square, _LARGEST) * (1.0 - relative) - tiny
            m_candidate = m_valid & (lower <= ceiling)
            if tl.max(m_candidate.to(tl.int32), axis=0) > 0:
                b_distance = tl.zeros([BLOCK_K], tl.float64)
                # Channel by channel, as the definition adds: another order would round to another winner of a
                # tie.
                for d in range(0, dim):
                    b_x = tl.load(p_x + tl.cast(d, tl.int64) * x_c).to(tl.float64)
                    b_c = tl.load(p_codes + d, mask=m_candidate, other=0.0).to(tl.float64)
                    b_diff = b_x - b_c
                    b_distance = b_distance + b_diff * b_diff
                tile_best = tl.min(tl.where(m_candidate, b_distance, inf), axis=0)
                tile_index = tl.min(tl.where(m_candidate & (b_distance == tile_best), k, num_codes), axis=0)
                # When every distance overflows, the lowest finite code wins, as in the definition.
                take = (tile_best < best) | (index < 0)
                best = tl.where(take, tile_best, best)
                index = tl.where(take, tile_index, index)

        found = index >= 0
        p_q = codebook + tl.maximum(index, 0).to(tl.int64) * dim
        p_out = out + row_offset(n, size_p, size_q, out_b, out_p, out_q)
        b_error = tl.zeros([BLOCK_D], work)
        for i_d in range(0, dim, BLOCK_D):
            d = i_d + o_d
            m_d = d < dim
            raw = tl.load(p_x + d.to(tl.int64) * x_c, mask=m_d, other=0.0).to(work)
            b_q = tl.load(p_q + d, mask=m_d, other=0.0).to(work)
            b_diff = raw - b_q
            b_error += b_diff * b_diff
            if WITH_OUTPUT:
                if FULL_STRENGTH:
                    b_out = b_q
                else:
                    b_out = raw + (tl.full([], strength, work) + tl.full([], strength_low, work)) * (
                        b_q - raw
                    )
                store_rounded(p_out + d.to(tl.int64) * out_c, tl.where(found, b_out, raw), m_d)
        tl.store(indices + n, index)
        tl.store(row_error + n, tl.where(found, tl.sum(b_error, axis=0), 0.0).to(tl.float32))
        i_row = tl.min(tl.where((b_mark <= -3) & (o_n > i_row), o_n, BLOCK_N), axis=0)


def lookup(
    x: Tensor,
    codebook: Tensor,
    center: Tensor,
    mask: Tensor | None,
    strength: float,
    with_output: bool,
    exact: bool,
    *,
    tickets: Tensor | None = None,
    config: LaunchConfig | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the nearest code of every row, output and squared error, in two launches (one if not exact).

    Args:
        x: features ``(B, C, P, Q)``, float16, bfloat16, float32 or float64, any strides, read in place.
        codebook: ``(K, C)`` float32.
        center: ``(C,)`` float32; any values, those near the mean of the features certify the most rows.
        mask: ``(N,)`` bool, True for real rows, or None.
        strength: the output is ``x + strength * (q - x)``; 1 gives exactly ``q`` in the dtype of ``x``.
        with_output: False leaves the output empty.
        exact: False takes the best coarse score without a certificate.
        tickets: int32, a power of two of them, set to zero for `segment_sums`; None for none.
        config: another coarse launch than the one in the table, for tests and measurements.

    Returns:
        ``(out, indices, row_error)``: strides of ``torch.empty_like(x)``; ``(N,)`` int32, -1 for rows with a
        NaN or an infinity, -2 for masked rows; ``(N,)`` float32 squared errors, 0 for those rows.
    """
    batch, dim, height, width = x.shape
    num_rows, num_codes = batch * height * width, codebook.shape[0]
    out = torch.empty_like(x) if with_output else x.new_empty(0)
    indices = torch.empty(num_rows, dtype=torch.int32, device=x.device)
    row_error = torch.empty(num_rows, dtype=torch.float32, device=x.device)
    if num_rows == 0:
        return out, indices, row_error
    codebook, center = codebook.contiguous(), center.contiguous()
    capability = device_capability(x)
    coarse = config or launch_config("lookup", num_rows, num_codes, dim, x.dtype, capability)
    size_p, size_q, (x_layout, out_layout) = row_geometry(x, out if with_output else x)
    bound = certificate(dim, coarse.block_d, coarse.dot)
    strength_high = float(np.float32(strength))
    wide = x.dtype == torch.float64
    with torch.cuda.device_of(x):
        _coarse_kernel[(triton.cdiv(num_rows, coarse.block_n),)](
            x,
            codebook,
            center,
            indices if mask is None else mask.contiguous(),  # never read without a mask
            out,
            indices,
            row_error,
            indices if tickets is None else tickets,  # likewise
            num_rows,
            num_codes,
            size_p,
            size_q,
            *x_layout,
            *out_layout,
            *bound,
            strength_high,
            strength - strength_high,
            DIM=dim,
            BLOCK_N=coarse.block_n,
            BLOCK_K=coarse.block_k,
            BLOCK_D=coarse.block_d,
            DOT="ieee" if capability == INTERPRETER else coarse.dot,
            WIDE=wide,
            EXACT=exact,
            WITH_OUTPUT=with_output,
            HAS_MASK=mask is not None,
            FULL_STRENGTH=strength == 1.0,
            TICKETS=0 if tickets is None else tickets.numel(),
            num_warps=coarse.num_warps,
            num_stages=coarse.num_stages,
        )
        if exact:
            fine = launch_config("rescore", num_rows, num_codes, dim, x.dtype, capability)
            _rescore_kernel[(triton.cdiv(num_rows, fine.block_n),)](
                x,
                codebook,
                out,
                indices,
                row_error,
                num_rows,
                num_codes,
                dim,
                size_p,
                size_q,
                *x_layout,
                *out_layout,
                direct_error(dim),
                bound.tiny,
                strength_high,
                strength - strength_high,
                BLOCK_N=fine.block_n,
                BLOCK_K=fine.block_k,
                BLOCK_D=fine.block_d,
                WIDE=wide,
                WITH_OUTPUT=with_output,
                FULL_STRENGTH=strength == 1.0,
                num_warps=fine.num_warps,
                num_stages=fine.num_stages,
                enable_fp_fusion=False,  # a fused multiply-add would change the distances
            )
    return out, indices, row_error
