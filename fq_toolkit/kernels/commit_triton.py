"""One moving-average step of the dictionary, in place, in one launch."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fq_toolkit.kernels.launch import LaunchConfig, device_capability, launch_config

_SCAN = 1024  # counts that a program adds up at a time


@triton.jit
def _commit_kernel(
    codebook,
    ema_counts,
    ema_sums,
    center,
    num_updates,
    new_counts,
    ticket,
    counts,
    sums,
    num_codes,
    code_programs,
    programs,
    decay,
    rest,
    log_decay,
    eps,
    slots_eps,
    DIM: tl.constexpr,
    SCAN: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DEBIAS: tl.constexpr,
):
    """Move counts n and sums m with decay l, then set ``E = m / ((n + eps) / (sum n + K eps) sum n)``.

    The first `code_programs` programs own `BLOCK_K` codes each, the others `BLOCK_D` channels of the centre.
    Every program needs the sum of all old n, and computes it in the same order.  The new n therefore go to a
    list beside them; the program that draws the last ticket, when all others are done with the old ones,
    copies the list, counts the update and puts the ticket back to 0.  Everything else that a program changes,
    it alone reads.
    """
    pid = tl.program_id(0)
    o_scan = tl.arange(0, SCAN)
    scale = 1.0
    if DEBIAS:
        t = tl.load(num_updates).to(tl.float64) + 1.0
        scale = (1.0 / (1.0 - tl.exp(t * log_decay))).to(tl.float32)
    b_rows = tl.zeros([SCAN], tl.float64)
    b_total = tl.zeros([SCAN], tl.float64)
    for i_k in range(0, num_codes, SCAN):
        m_scan = i_k + o_scan < num_codes
        b_new = tl.load(counts + i_k + o_scan, mask=m_scan, other=0)
        b_old = tl.load(ema_counts + i_k + o_scan, mask=m_scan, other=0.0)
        b_rows += b_new.to(tl.float64)
        b_total += ((decay * b_old + rest * b_new.to(tl.float32)) * scale).to(tl.float64)
    rows = tl.sum(b_rows, axis=0)
    total = tl.sum(b_total, axis=0).to(tl.float32)

    if pid < code_programs:
        k = pid * BLOCK_K + tl.arange(0, BLOCK_K)
        m_k = k < num_codes
        # A batch without a valid row writes nothing; a block, as the interpreter masks by blocks only.
        m_write = m_k & (tl.full([BLOCK_K], rows, tl.float64) > 0)
        b_old = tl.load(ema_counts + k, mask=m_k, other=0.0)
        b_number = decay * b_old + rest * tl.load(counts + k, mask=m_k, other=0).to(tl.float32)
        b_seen = b_number * scale
        # `div_rn` rounds as the division of the reference does; the plain one may be off by a bit.
        b_smoothed = tl.div_rn(b_seen + eps, total + slots_eps) * total
        p_row = k.to(tl.int64)[:, None] * DIM
        for i_d in range(0, DIM, BLOCK_D):
            d = i_d + tl.arange(0, BLOCK_D)
            m_tile = m_write[:, None] & (d < DIM)[None, :]
            b_sum = tl.load(ema_sums + p_row + d[None, :], mask=m_tile, other=0.0)
            b_added = tl.load(sums + p_row + d[None, :], mask=m_tile, other=0.0)
            # A sum beyond float32 is left out: the moving sum would stay infinite for ever.
            b_sum = tl.where(tl.abs(b_added) < float("inf"), decay * b_sum + rest * b_added, b_sum)
            b_code = tl.div_rn(b_sum * scale, tl.broadcast_to(b_smoothed[:, None], [BLOCK_K, BLOCK_D]))
            tl.store(ema_sums + p_row + d[None, :], b_sum, mask=m_tile)
            tl.store(codebook + p_row + d[None, :], b_code, mask=m_tile)
        tl.store(new_counts + k, b_number, mask=m_write)
    else:
        d = (pid - code_programs) * BLOCK_D + tl.arange(0, BLOCK_D)
        m_d = (d < DIM) & (tl.full([BLOCK_D], rows, tl.float64) > 0)
        b_column = tl.zeros([BLOCK_D], tl.float64)
        for i_k in range(0, num_codes, BLOCK_K):
            k = i_k + tl.arange(0, BLOCK_K)
            m_tile = (k < num_codes)[:, None] & m_d[None, :]
            b_sum = tl.load(sums + k.to(tl.int64)[:, None] * DIM + d[None, :], mask=m_tile, other=0.0)
            b_column += tl.sum(b_sum.to(tl.float64), axis=0)
        b_mean = (b_column / tl.maximum(rows, 1.0)).to(tl.float32)
        b_center = tl.load(center + d, mask=m_d, other=0.0)
        b_center = tl.where(tl.abs(b_mean) < float("inf"), decay * b_center + rest * b_mean, b_center)
        tl.store(center + d, b_center, mask=m_d)

    tl.debug_barrier()  # the ticket of one thread stands for what all threads have read and written
    if tl.atomic_add(ticket, 1, sem="acq_rel") == programs - 1:
        if rows > 0:
            for i_k in range(0, num_codes, SCAN):
                m_scan = i_k + o_scan < num_codes
                b_number = tl.load(new_counts + i_k + o_scan, mask=m_scan, other=0.0, cache_modifier=".cg")
                tl.store(ema_counts + i_k + o_scan, b_number, mask=m_scan)
            tl.store(num_updates, tl.load(num_updates) + 1)
        tl.store(ticket, 0)


_tickets: dict[tuple[torch.device, int], Tensor] = {}


def _ticket(device: torch.device) -> Tensor:
    """Return the current stream's ticket counter: 0 between launches, which a stream runs in order.

    A graph that is being captured gets one of its own, cleared in each replay: its memory is the graph's.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return torch.zeros(1, dtype=torch.int32, device=device)
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    if (device, stream) not in _tickets:
        _tickets[device, stream] = torch.zeros(1, dtype=torch.int32, device=device)
    return _tickets[device, stream]


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
    *,
    config: LaunchConfig | None = None,
) -> None:
    """Move the dictionary towards the batch; the Triton form of `fq_toolkit.kernels.reference.ema_commit_`.

    Nothing is read back to the host.  One launch; the first on a stream, and those in a CUDA graph, also
    clear a counter.

    Args:
        codebook: ``(K, C)`` float32, changed.
        ema_counts: ``(K,)`` float32, changed.
        ema_sums: ``(K, C)`` float32, changed.
        center: ``(C,)`` float32, changed.
        num_updates: int64 scalar, changed.
        counts: ``(K,)``, int64 or float32.
        sums: ``(K, C)`` float32.
        decay: the decay l in [0, 1).
        eps: the smoothing constant.
        debias: divide by ``1 - l^t`` before the codes are formed.
        config: another launch than the one in the table, for tests and measurements.
    """
    num_codes, dim = codebook.shape
    config = config or launch_config("commit", 0, num_codes, dim, codebook.dtype, device_capability(codebook))
    code_programs = triton.cdiv(num_codes, config.block_k)
    programs = code_programs + triton.cdiv(dim, config.block_d)
    with torch.cuda.device_of(codebook):
        _commit_kernel[(programs,)](
            codebook,
            ema_counts,
            ema_sums,
            center,
            num_updates,
            torch.empty_like(ema_counts),
            _ticket(codebook.device),
            counts.contiguous(),
            sums.contiguous(),
            num_codes,
            code_programs,
            programs,
            decay,
            1 - decay,
            math.log(decay) if decay > 0 else -math.inf,
            eps,
            num_codes * eps,
            DIM=dim,
            SCAN=_SCAN,
            BLOCK_K=config.block_k,
            BLOCK_D=config.block_d,
            DEBIAS=debias,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            enable_fp_fusion=False,
        )
