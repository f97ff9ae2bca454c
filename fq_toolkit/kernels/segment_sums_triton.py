"""Per-code counts and sums and per-sample errors, bitwise repeatable: no float atomics, no sort.

A program owns a stretch of rows, a tile of codes and a tile of channels.  It reads the indices of its
stretch, writes the positions of the rows that belong to its codes, in ascending order, to a small list of its
own, and then gathers those rows, `BLOCK_N` at a time, into its sums by a product with a one-hot matrix.  The
operands are exact: a one-hot matrix and the pieces of 11 bits that a float32 value is cut into are TF32
numbers.  What rounds is the addition of the rows of one product; from product to product the sums are
compensated, so that the error does not grow with the number of rows.  Every order is fixed by the shape of
the input.

With more than one stretch the programs of a tile write partial sums and then draw tickets; the one that draws
the last adds the partial sums of all stretches, in the order of the stretches.  Who that is varies, what it
computes does not.  Nobody waits for anybody.

Why this and not something else, for a device with 132 multiprocessors, 67 TFLOP/s of float32, 495 of TF32,
3.3 TB/s of memory and 5.5 TB/s of L2 cache, N = 32768 rows, C = 256 channels and K = 1024 codes; estimates,
not measured:

* Reading the rows once is 34 MB or 10 us, the floor.
* A plain one-hot product costs 2 N K C per piece, as much as the lookup (150 us in three pieces).  With the
  list the factor K becomes the 64 codes of a tile: 9 us, beside the gather of 34 MB.
* The indices are read once per tile of codes and channels, N (K/64) (C/64) 4 bytes = 8 MB from the L2 cache,
  and compared with N K C / 64^2 operations: together below 5 us up to K = 16384.
* A sort (counting or radix) reads and writes less for very large K but takes four or more launches, each 3-5
  us, where this takes one.
* The last program of a tile reads up to 64 partial tiles of 16 KiB in a row, four at a time: up to 16 trips
  to the L2 cache of about 1 us each, while a second launch, spread over the device, would cost its 3-5 us.
* Integer atomics on fixed-point values would be repeatable, but need the range of the data beforehand.

CUDA C++ could keep the list in shared memory, rank rows with warp votes and skip the trip through the L2
cache; that should gain some 20-30 % of this kernel, itself a fraction of the lookup.  It would add a compiler
to the installation and code for each generation of devices, for a gain that nobody has measured: it is not
shipped.

When all rows fall on a few codes, the programs of those codes do most of the work: up to the number of code
tiles times slower than balanced codes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fq_toolkit.kernels.launch import LaunchConfig, device_capability, launch_config
from fq_toolkit.kernels.rows_triton import row_geometry, row_offset

_CHUNK = 1024  # indices that a program looks through at a time
_ROWS_PER_SPLIT = 4096
_MOST_SPLITS = 64  # one program adds up the partial sums of a tile
_PROGRAMS = 1024  # about as many as run at once on a large device
TICKETS = _PROGRAMS // 2  # tiles of split rows: with more tiles the rows stay in one stretch
_PARTIAL_ELEMENTS = 1 << 21  # 8 MiB of float32 partial sums


@triton.jit
def _add_compensated(total, lost, value):
    """Return ``total - value``, and ``lost`` plus what the rounding lost (two-sum)."""
    grown = total - value
    back = grown - total
    return grown, lost + ((total - (grown - back)) - (value + back))


@triton.jit
def _subtract_pieces(total, lost, b_minus, b_x, EXACT_IN_TF32: tl.constexpr, DOT: tl.constexpr):
    """Subtract the product of ``b_minus`` (entries 0 and -1) and ``b_x``, piece by exact piece.

    The product is negative and subtracted, which keeps the compiler from accumulating it into the running sum
    inside the tensor cores, where the compensation would see nothing.
    """
    if EXACT_IN_TF32:
        return _add_compensated(total, lost, tl.dot(b_minus, b_x, input_precision=DOT))
    else:
        # -8192 clears 13 of 23 fraction bits: what is left has 11 bits and is a TF32 number.
        b_high = (b_x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
        b_rest = b_x - b_high
        b_middle = (b_rest.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
        total, lost = _add_compensated(total, lost, tl.dot(b_minus, b_high, input_precision=DOT))
        # The two lower pieces may share an accumulator: what it rounds is far below the value.
        small = tl.dot(b_minus, b_middle, input_precision=DOT)
        small = tl.dot(b_minus, b_rest - b_middle, acc=small, input_precision=DOT)
        return _add_compensated(total, lost, small)


@triton.jit
def _add_parts(p_first, stride, parts, m_part, total):
    """Add the partial tiles at ``p_first + i stride`` to ``total``, in ascending i, read four at a time.

    They were written by other multiprocessors: the loads pass by the first-level cache. The masks compare
    blocks, since the interpreter makes no mask of a block and a scalar.
    """
    for i in range(0, parts, 4):
        p_part = p_first + i * stride
        b_0 = tl.load(p_part, mask=m_part, other=0, cache_modifier=".cg")
        m_1 = tl.where(m_part, i + 1, parts) < parts
        b_1 = tl.load(p_part + stride, mask=m_1, other=0, cache_modifier=".cg")
        m_2 = tl.where(m_part, i + 2, parts) < parts
        b_2 = tl.load(p_part + 2 * stride, mask=m_2, other=0, cache_modifier=".cg")
        m_3 = tl.where(m_part, i + 3, parts) < parts
        b_3 = tl.load(p_part + 3 * stride, mask=m_3, other=0, cache_modifier=".cg")
        total = total + b_0.to(total.dtype)
        total = total + b_1.to(total.dtype)
        total = total + b_2.to(total.dtype)
        total = total + b_3.to(total.dtype)
    return total


@triton.jit(do_not_specialize=["num_rows", "rows_per_split", "batch", "splits"])
def _segment_kernel(
    x,
    indices,
    row_error,
    positions,
    partial_counts,
    partial_sums,
    tickets,
    counts,
    sums,
    sq_error,
    num_rows,
    rows_per_split,
    splits,
    batch,
    rows_per_sample,
    num_codes,
    code_tiles,
    channel_tiles,
    main_programs,
    size_p,
    size_q,
    x_b,
    x_c,
    x_p,
    x_q,
    DIM: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SAMPLES: tl.constexpr,
    SPAN: tl.constexpr,
    EXACT_IN_TF32: tl.constexpr,
    DOT: tl.constexpr,
    WITH_SUMS: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Compute ``counts[k] = #{n : i(n) = k}``, ``sums[k]`` of those rows, ``sq_error[b]`` of the errors.

    The first `main_programs` programs do counts and sums, into the part of their split of the rows; the last
    of them to arrive at a tile adds its parts.  The others add up the errors of `SAMPLES` samples, `SPAN`
    positions at a time, in float64.
    """
    pid = tl.program_id(0)
    if pid >= main_programs:
        b = (pid - main_programs).to(tl.int64) * SAMPLES + tl.arange(0, SAMPLES)
        o_s = tl.arange(0, SPAN)
        b_error = tl.zeros([SAMPLES, SPAN], tl.float64)
        for i_s in range(0, rows_per_sample, SPAN):
            m_error = (b[:, None] < batch) & (i_s + o_s[None, :] < rows_per_sample)
            p_error = row_error + b[:, None] * rows_per_sample + i_s + o_s[None, :]
            b_error += tl.load(p_error, mask=m_error, other=0.0).to(tl.float64)
        tl.store(sq_error + b, tl.sum(b_error, axis=1).to(tl.float32), mask=b < batch)
    else:
        i_channel = pid % channel_tiles
        i_code = (pid // channel_tiles) % code_tiles
        i_split = (pid // channel_tiles) // code_tiles
        o_chunk = tl.arange(0, CHUNK)
        o_n = tl.arange(0, BLOCK_N)
        k = i_code * BLOCK_K + tl.arange(0, BLOCK_K)
        d = i_channel * BLOCK_D + tl.arange(0, BLOCK_D)
        p_list = positions + pid.to(tl.int64) * CHUNK
        start = i_split.to(tl.int64) * rows_per_split
        stop = tl.minimum(start + rows_per_split, num_rows)
        b_count = tl.zeros([BLOCK_K], tl.int64)
        total = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
        lost = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
        for i_n in range(start, stop, CHUNK):
            n = i_n + o_chunk
            b_index = tl.load(indices + n, mask=n < stop, other=-1)
            m_mine = (b_index >= i_code * BLOCK_K) & (b_index < (i_code + 1) * BLOCK_K)
            b_mine = m_mine.to(tl.int32)
            b_place = tl.cumsum(b_mine, axis=0) - b_mine  # ascending, so the order of sums is fixed
            tl.debug_barrier()  # nobody still reads the list of the previous chunk
            tl.store(p_list + b_place, o_chunk, mask=m_mine)
            tl.debug_barrier()  # the list is complete
            mine = tl.sum(b_mine, axis=0)
            for i_list in tl.range(0, mine, BLOCK_N, num_stages=1):
                m_n = i_list + o_n < mine
                row = i_n + tl.load(p_list + i_list + o_n, mask=m_n, other=0)
                b_code = tl.load(indices + row, mask=m_n, other=-1)
                m_hit = b_code[None, :] == k[:, None]
                b_count += tl.sum(m_hit.to(tl.int32), axis=1).to(tl.int64)
                if WITH_SUMS:
                    p_x = x + row_offset(row, size_p, size_q, x_b, x_p, x_q)
                    m_x = m_n[:, None] & (d < DIM)[None, :]
                    b_x = tl.load(p_x[:, None] + d.to(tl.int64)[None, :] * x_c, mask=m_x, other=0.0)
                    b_x = b_x.to(tl.float32)
                    b_minus = tl.where(m_hit, -1.0, 0.0)
                    total, lost = _subtract_pieces(total, lost, b_minus, b_x, EXACT_IN_TF32, DOT)
        m_k = k < num_codes
        m_sums = m_k[:, None] & (d < DIM)[None, :]
        o_sums = k.to(tl.int64)[:, None] * DIM + d[None, :]
        if SPLIT:
            part = i_split.to(tl.int64) * num_codes
            if i_channel == 0:
                tl.store(partial_counts + part + k, b_count, mask=m_k)
            if WITH_SUMS:
                tl.store(partial_sums + part * DIM + o_sums, total + lost, mask=m_sums)
            tl.debug_barrier()  # the ticket of one thread publishes what all threads have written
            ticket = tl.atomic_add(tickets + pid % (code_tiles * channel_tiles), 1, sem="acq_rel")
            if ticket == splits - 1:
                stride = tl.cast(num_codes, tl.int64)
                if i_channel == 0:
                    b_count = tl.zeros([BLOCK_K], tl.int64)
                    b_count = _add_parts(partial_counts + k, stride, splits, m_k, b_count)
                    tl.store(counts + k, b_count, mask=m_k)
                if WITH_SUMS:
                    b_sum = tl.zeros([BLOCK_K, BLOCK_D], tl.float64)
                    b_sum = _add_parts(partial_sums + o_sums, stride * DIM, splits, m_sums, b_sum)
                    tl.store(sums + o_sums, b_sum.to(tl.float32), mask=m_sums)
        else:
            if i_channel == 0:
                tl.store(counts + k, b_count, mask=m_k)
            if WITH_SUMS:
                tl.store(sums + o_sums, total + lost, mask=m_sums)


def split_rows(num_rows: int, num_codes: int, dim: int, tiles: int) -> tuple[int, int]:
    """Choose how many stretches to cut the rows into: ``(splits, rows_per_split)``.

    One stretch needs no partial sums; more keep every multiprocessor busy.  The partial sums take at most
    8 MiB.
    """
    fitting = min(_PROGRAMS // tiles, _PARTIAL_ELEMENTS // (num_codes * dim))
    splits = min(num_rows // _ROWS_PER_SPLIT, fitting, _MOST_SPLITS)
    splits = max(1, splits)
    rows = triton.cdiv(triton.cdiv(num_rows, splits), _CHUNK) * _CHUNK
    return triton.cdiv(num_rows, rows), rows


def segment_sums(
    x: Tensor,
    indices: Tensor,
    row_error: Tensor,
    num_codes: int,
    with_sums: bool,
    *,
    tickets: Tensor | None = None,
    config: LaunchConfig | None = None,
    splits: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum squared errors per sample, and count and sum the valid rows per code, in one launch.

    Args:
        x: features ``(B, C, P, Q)``, any strides, read in place.
        indices: ``(N,)`` int32 as `lookup` returns them; negative ones belong to no code.
        row_error: ``(N,)`` float32.
        num_codes: K.
        with_sums: False leaves the sums empty.
        tickets: ``(TICKETS,)`` int32, all zero, used up by this call: `lookup` clears them in passing.  By
            default new zeros, which is a launch more.
        config: another launch than the one in the table, for tests and measurements.
        splits: another number of stretches of rows, likewise.

    Returns:
        ``(sq_error, counts, sums)``: ``(B,)`` float32, ``(K,)`` int64, ``(K, C)`` float32.
    """
    batch, dim, height, width = x.shape
    num_rows = batch * height * width
    if num_rows == 0:
        counts = torch.zeros(num_codes, dtype=torch.int64, device=x.device)
        sums = torch.zeros(num_codes if with_sums else 0, dim, device=x.device)
        return torch.zeros(batch, device=x.device), counts, sums
    capability = device_capability(x)
    config = config or launch_config("sums", num_rows, num_codes, dim, x.dtype, capability)
    code_tiles = triton.cdiv(num_codes, config.block_k)
    channel_tiles = triton.cdiv(dim, config.block_d) if with_sums else 1
    if splits is None:
        splits, rows_per_split = split_rows(num_rows, num_codes, dim, code_tiles * channel_tiles)
    else:
        rows_per_split = triton.cdiv(num_rows, splits)
        splits = triton.cdiv(num_rows, rows_per_split)
    main_programs = splits * code_tiles * channel_tiles
    # Small maps: many samples to a program; large ones: one sample, many positions at a time.
    samples, span = (64, 16) if height * width < 256 else (1, 1024)
    size_p, size_q, (x_layout,) = row_geometry(x)

    sq_error = torch.empty(batch, dtype=torch.float32, device=x.device)
    counts = torch.empty(num_codes, dtype=torch.int64, device=x.device)
    sums = torch.empty(num_codes if with_sums else 0, dim, dtype=torch.float32, device=x.device)
    partial_counts = counts.new_empty(splits, num_codes) if splits > 1 else counts
    partial_sums = sums.new_empty(splits, *sums.shape) if splits > 1 else sums
    if tickets is None:
        tickets = torch.zeros(code_tiles * channel_tiles, dtype=torch.int32, device=x.device)
    positions = torch.empty(main_programs * _CHUNK, dtype=torch.int32, device=x.device)
    with torch.cuda.device_of(x):
        _segment_kernel[(main_programs + triton.cdiv(batch, samples),)](
            x,
            indices,
            row_error,
            positions,
            partial_counts,
            partial_sums,
            tickets,
            counts,
            sums,
            sq_error,
            num_rows,
            rows_per_split,
            splits,
            batch,
            height * width,
            num_codes,
            code_tiles,
            channel_tiles,
            main_programs,
            size_p,
            size_q,
            *x_layout,
            DIM=dim,
            CHUNK=_CHUNK,
            BLOCK_N=config.block_n,
            BLOCK_K=config.block_k,
            BLOCK_D=config.block_d,
            SAMPLES=samples,
            SPAN=span,
            EXACT_IN_TF32=x.dtype in (torch.float16, torch.bfloat16),
            DOT=config.dot,
            WITH_SUMS=with_sums,
            SPLIT=splits > 1,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
    return sq_error, counts, sums
