"""Gradient of the lookup with respect to the features, in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fq_toolkit.kernels.launch import LaunchConfig, device_capability, launch_config
from fq_toolkit.kernels.rows_triton import row_geometry, row_offset, store_rounded


@triton.jit(do_not_specialize=["num_rows"])
def _backward_kernel(
    grad_out,
    grad_error,
    x,
    codebook,
    indices,
    gradient,
    num_rows,
    num_codes,
    rows_per_sample,
    size_p,
    size_q,
    g_b,
    g_c,
    g_p,
    g_q,
    x_b,
    x_c,
    x_p,
    x_q,
    d_b,
    d_c,
    d_p,
    d_q,
    DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
    HAS_GRAD: tl.constexpr,
):
    """Compute ``dx = g + 2 h[b] (x - q)`` for valid rows and g for others; q is gathered again, not saved.

    Compiled without floating-point contraction, which makes it equal to the reference bit for bit.  An index
    beyond the codes, which no forward pass gives, makes NaN rather than a read beyond the codebook.
    """
    work = tl.float64 if WIDE else tl.float32
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    m_n = n < num_rows
    m_tile = m_n[:, None] & (d < DIM)[None, :]
    b_index = tl.load(indices + n, mask=m_n, other=-1)
    b_weight = 2.0 * tl.load(grad_error + n // rows_per_sample, mask=m_n, other=0.0).to(work)
    # Masked loads, not a product with zero: a row without a code may hold NaN.
    m_valid = ((b_index >= 0) & (b_index < num_codes))[:, None] & m_tile
    wide_d = d.to(tl.int64)[None, :]
    p_x = x + row_offset(n, size_p, size_q, x_b, x_p, x_q)[:, None] + wide_d * x_c
    p_q = codebook + b_index.to(tl.int64)[:, None] * DIM + d[None, :]
    b_x = tl.load(p_x, mask=m_valid, other=0.0).to(work)
    b_q = tl.load(p_q, mask=m_valid, other=0.0).to(work)
    b_gradient = tl.where(m_valid, b_weight[:, None] * (b_x - b_q), 0.0)
    b_gradient = tl.where((b_index < num_codes)[:, None], b_gradient, float("nan"))
    if HAS_GRAD:
        p_g = grad_out + row_offset(n, size_p, size_q, g_b, g_p, g_q)[:, None] + wide_d * g_c
        b_gradient += tl.load(p_g, mask=m_tile, other=0.0).to(work)
    p_d = gradient + row_offset(n, size_p, size_q, d_b, d_p, d_q)[:, None] + wide_d * d_c
    store_rounded(p_d, b_gradient, m_tile)


def quantize_backward(
    grad_out: Tensor,
    grad_error: Tensor,
    x: Tensor,
    codebook: Tensor,
    indices: Tensor,
    *,
    config: LaunchConfig | None = None,
) -> Tensor:
    """Compute the gradient of the features: `fq_toolkit.kernels.reference.quantize_backward` in Triton.

    Args:
        grad_out: like ``x`` with any strides and any floating dtype, or of shape ``(0,)`` for zero.
        grad_error: ``(B,)`` float32.
        x: features ``(B, C, P, Q)``.
        codebook: ``(K, C)`` float32, the dictionary of the forward pass.
        indices: ``(N,)`` int32 of the forward pass.
        config: another launch than the one in the table, for tests and measurements.

    Returns:
        The gradient, in the dtype of ``x`` and with the strides of ``torch.empty_like(x)``.
    """
    batch, dim, height, width = x.shape
    num_rows = batch * height * width
    gradient = torch.empty_like(x)
    if num_rows == 0:
        return gradient
    has_grad = grad_out.numel() > 0
    config = config or launch_config(
        "backward", num_rows, codebook.shape[0], dim, x.dtype, device_capability(x)
    )
    upstream = grad_out if has_grad else x  # never read without a gradient
    size_p, size_q, (g_layout, x_layout, d_layout) = row_geometry(upstream, x, gradient)
    with torch.cuda.device_of(x):
        _backward_kernel[(triton.cdiv(num_rows, config.block_n), triton.cdiv(dim, config.block_d))](
            upstream,
            grad_error.contiguous(),
            x,
            codebook.contiguous(),
            indices.contiguous(),
            gradient,
            num_rows,
            codebook.shape[0],
            height * width,
            size_p,
            size_q,
            *g_layout,
            *x_layout,
            *d_layout,
            DIM=dim,
            BLOCK_N=config.block_n,
            BLOCK_D=config.block_d,
            WIDE=x.dtype == torch.float64,
            HAS_GRAD=has_grad,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            enable_fp_fusion=False,  # equal to the reference bit for bit
        )
    return gradient
