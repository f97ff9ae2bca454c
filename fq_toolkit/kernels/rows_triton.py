"""What the Triton kernels share: the address of a row in a strided view, and a rounding store."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


def row_geometry(*views: Tensor) -> tuple[int, int, list[tuple[int, int, int, int]]]:
    """Merge the position axes of views ``(B, C, P, Q)`` wherever the strides of all of them allow it.

    Args:
        views: tensors of one shape.

    Returns:
        The sizes of the two innermost position axes after merging and, for each view, its strides
        ``(outermost, channel, middle, innermost)`` as `row_offset` takes them.  A long innermost axis lets
        the compiler see contiguous addresses.
    """
    shape = views[0].shape
    axes = [(shape[axis], [view.stride(axis) for view in views]) for axis in (0, 2, 3) if shape[axis] != 1]
    merged: list[tuple[int, list[int]]] = []
    for size, strides in reversed(axes):
        if merged:
            inner_size, inner = merged[-1]
            if all(stride == inner_size * step for stride, step in zip(strides, inner, strict=True)):
                merged[-1] = (inner_size * size, inner)
                continue
        merged.append((size, strides))
    merged += [(1, [0] * len(views))] * (3 - len(merged))
    (size_q, step_q), (size_p, step_p), (_, step_b) = merged
    layout = [(step_b[i], view.stride(1), step_p[i], step_q[i]) for i, view in enumerate(views)]
    return size_p, size_q, layout


@triton.jit
def row_offset(n, size_p, size_q, stride_b, stride_p, stride_q):
    """Return the offset in elements of row ``n`` (int64) in a view with the geometry of `row_geometry`."""
    outer = n // size_q
    return (outer // size_p) * stride_b + (outer % size_p) * stride_p + (n % size_q) * stride_q


@triton.jit
def store_rounded(pointer, value, m_store):
    """Store a float32 or float64 tile in the dtype of the pointer, rounded to nearest even.

    The rounding to bfloat16 is spelled out on the bits, since the interpreter truncates; where the hardware
    rounds by itself it finds nothing left to round.
    """
    if pointer.dtype.element_ty == tl.bfloat16:
        bits = value.to(tl.float32).to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        bits = tl.where(value == value, rounded, bits | 0x400000)
        tl.store(pointer, bits.to(tl.float32, bitcast=True).to(tl.bfloat16), mask=m_store)
    else:
        tl.store(pointer, value.to(pointer.dtype.element_ty), mask=m_store)
