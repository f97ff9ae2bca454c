"""Attention of one new token over memory slots and text on a CPU, by the compiled kernels."""

from __future__ import annotations

import functools
import os
import struct

import torch
from torch import Tensor

from fq_toolkit.kernels import native, tracing

# `DecodeArguments` of the C++ source: 6 pointers, 14 strides, 8 sizes and the scale. A structure of ctypes
# would take longer to fill.
_ARGUMENTS = struct.Struct("@6P14q8qd")


@functools.cache
def usable() -> bool:
    """Whether the kernel is there and no other backend is asked for; compiles it, and asks only once."""
    return os.environ.get("FQ_TOOLKIT_BACKEND", "") in ("", "native") and native.problem() is None


def can_attend_one(query: Tensor, key: Tensor, value: Tensor, slots: tuple[Tensor, Tensor]) -> bool:
    """Whether :func:`attend_one` takes these tensors: real float32 ones on a CPU that need no gradient.

    Every layer of every token asks. Shapes as there.
    """
    slot_key, slot_value = slots
    return (
        type(query) is type(key) is type(slot_key) is Tensor
        and query.dtype is key.dtype is value.dtype is slot_key.dtype is slot_value.dtype is torch.float32
        and query.is_cpu
        and key.is_cpu
        and slot_key.is_cpu
        and not (
            torch.is_grad_enabled()
            and any(x.requires_grad for x in (query, key, value, slot_key, slot_value))
        )
        and not torch.jit.is_tracing()
        and not tracing.under_transform()
        and query.stride(3) == key.stride(3) == value.stride(3) == 1
        and slot_key.stride(3) == slot_value.stride(3) == 1
        and usable()
    )


def attend_one(
    query: Tensor, key: Tensor, value: Tensor, slots: tuple[Tensor, Tensor], *, scale: float | None
) -> Tensor:
    """Attention of one query over slots and text; no copy of either.

    Args:
        query: (B, heads, 1, key_dim) float32.
        key: (B, groups, K, key_dim), text only; the heads share them in groups of heads / groups.
        value: (B, groups, K, value_dim), text only.
        slots: key and value of the slots, (B or 1, groups, slots, key_dim or value_dim).
        scale: of the scores; None for 1 / sqrt(key_dim).

    Returns:
        (B, 1, heads, value_dim).

    Raises:
        MemoryError: without memory for a number per position.
    """
    batch, heads, _, key_dim = query.shape
    _, groups, length, value_dim = value.shape
    slot_key, slot_value = slots
    own, _, count, _ = slot_key.shape
    out = query.new_empty((batch, 1, heads, value_dim))  # whatever the default dtype and device
    of_batch, of_head, _, _ = query.stride()
    key_batch, key_head, key_row, _ = key.stride()
    value_batch, value_head, value_row, _ = value.stride()
    slot_key_batch, slot_key_head, slot_key_row, _ = slot_key.stride()
    slot_value_batch, slot_value_head, slot_value_row, _ = slot_value.stride()
    if own == 1:  # slots of all texts
        slot_key_batch = slot_value_batch = 0
    arguments = _ARGUMENTS.pack(
        *(query.data_ptr(), key.data_ptr(), value.data_ptr()),
        *(slot_key.data_ptr(), slot_value.data_ptr(), out.data_ptr()),
        *(of_batch, of_head, key_batch, key_head, key_row, value_batch, value_head, value_row),
        *(slot_key_batch, slot_key_head, slot_key_row, slot_value_batch, slot_value_head, slot_value_row),
        *(batch, heads, groups, length, count, key_dim, value_dim),
        native.threads_for(batch * heads * (length + count) * (key_dim + value_dim)),
        key_dim**-0.5 if scale is None else scale,
    )
    native.check_status(native.library().fq_decode(arguments), query)
    return out
