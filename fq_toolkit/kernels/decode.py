"""Attention of one new token over memory slots and text on a CPU, by the compiled kernels."""

from __future__ import annotations

import functools
import os
import struct

import torch
from torch import Tensor

from fq_toolkit.kernels import native, private

# `DecodeArguments` of the C++ source: 6 pointers, 14 strides, 8 sizes and the scale. A structure of ctypes
# would take longer to fill.
_ARGUMENTS = struct.Struct("@6P14q8qd")


@functools.cache
def usable() -> bool:
    """Return whether the kernel is there and no other backend is asked for; compile it at the first call."""
    return os.environ.get("FQ_TOOLKIT_BACKEND", "") in ("", "native") and native.problem() is None


def can_attend_one(query: Tensor, key: Tensor, value: Tensor, slots: tuple[Tensor, Tensor]) -> bool:
    """Return whether `attend_one` takes these tensors: real float32 ones on a CPU that need no gradient.

    Every layer of every token asks. Shapes as there.
    """
    slot_key, slot_value = slots
    return (
        type(query) is type(key) is type(slot_key) is Tensor
        and query.dtype is key.dtype is value.dtype is slot_key.dtype is slot_value.dtype is torch.float32
        and query.is_cpu
        and key.is_cpu
        and value.is_cpu
        and slot_key.is_cpu
        and slot_value.is_cpu
        and not (
            torch.is_grad_enabled()
            and any(x.requires_grad for x in (query, key, value, slot_key, slot_value))
        )
        and not (query.is_neg() or key.is_neg() or value.is_neg() or slot_key.is_neg() or slot_value.is_neg())
        and not torch.jit.is_tracing()
        and not private.under_transform()
        and query.stride(3) == key.stride(3) == value.stride(3) == 1
        and slot_key.stride(3) == slot_value.stride(3) == 1
        and usable()
    )


def _check_shapes(query: Tensor, key: Tensor, value: Tensor, slot_key: Tensor, slot_value: Tensor) -> None:
    """Raise ValueError for what the kernel would read beyond; each comparison is one of tuples."""
    tensors = (query, key, value, slot_key, slot_value)
    problem = None
    if not query.ndim == key.ndim == value.ndim == slot_key.ndim == slot_value.ndim == 4:
        problem = "each must have four dimensions"
    else:
        batch, heads, one, key_dim = query.shape
        _, groups, length, value_dim = value.shape
        own, _, count, _ = slot_key.shape
        if one != 1 or key_dim < 1 or groups < 1 or heads % groups or length + count < 1:
            problem = "there must be one query, channels, positions and whole groups of heads"
        elif key.shape != (batch, groups, length, key_dim) or value.shape[0] != batch:
            problem = "key and value must agree with the query and with each other"
        elif own not in (1, batch) or slot_key.shape != (own, groups, count, key_dim):
            problem = "the keys of the slots must agree with those of the text"
        elif slot_value.shape != (own, groups, count, value_dim):
            problem = "the values of the slots must agree with their keys and with those of the text"
        elif not all(tensor.dtype is torch.float32 and tensor.is_cpu for tensor in tensors):
            problem = "each must be float32 on a CPU"
        elif any(tensor.is_neg() for tensor in tensors):
            problem = "none may be the imaginary part of a conjugate: call resolve_neg()"
        elif not all(tensor.stride(3) == 1 or tensor.shape[3] <= 1 for tensor in tensors):
            problem = "the channels of each must be adjacent"
    if problem:
        given = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise ValueError(
            f"no attention over these tensors: {problem}; got query, key, value and slots of shapes {given}"
        )


def attend_one(
    query: Tensor, key: Tensor, value: Tensor, slots: tuple[Tensor, Tensor], *, scale: float | None
) -> Tensor:
    """Attend from one query over slots and text, without a copy of either.

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
        ValueError: tensors that `can_attend_one` refuses, or shapes that do not go with each other.
    """
    slot_key, slot_value = slots
    _check_shapes(query, key, value, slot_key, slot_value)
    batch, heads, _, key_dim = query.shape
    _, groups, length, value_dim = value.shape
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
