"""Attention of one new token over memory slots and text on a CPU, by the compiled kernels."""

from __future__ import annotations

import ctypes
import os

import torch
from torch import Tensor

from fq_toolkit.kernels import native

_Pointer = ctypes.c_void_p
_Strides = ctypes.c_int64 * 14


class _Decode(ctypes.Structure):
    """Mirrors ``DecodeArguments`` of the C++ source."""

    _fields_ = (
        ("query", _Pointer), ("key", _Pointer), ("value", _Pointer), ("slot_key", _Pointer), ("slot_value",
        _Pointer), ("out", _Pointer), ("strides", ctypes.POINTER(ctypes.c_int64)), ("batch", ctypes.c_int64),
        ("heads", ctypes.c_int64), ("groups", ctypes.c_int64), ("length", ctypes.c_int64), ("slots",
        ctypes.c_int64), ("key_dim", ctypes.c_int64), ("value_dim", ctypes.c_int64), ("scale",
        ctypes.c_double), ("threads", ctypes.c_int32),
    )  # fmt: skip


def can_attend_one(query: Tensor, key: Tensor, value: Tensor, slots: tuple[Tensor, Tensor]) -> bool:
    """Whether :func:`attend_one` takes these tensors: real float32 ones on a CPU that need no gradient.

    Every layer of every token asks.  The first time the kernels are compiled.
    """
    return (
        type(query) is type(key) is type(slots[0]) is Tensor
        and query.dtype is key.dtype is value.dtype is slots[0].dtype is slots[1].dtype is torch.float32
        and query.is_cpu
        and key.is_cpu
        and slots[0].is_cpu
        and not (torch.is_grad_enabled() and (query.requires_grad or slots[0].requires_grad))
        and query.stride(3) == key.stride(3) == value.stride(3) == 1
        and slots[0].stride(3) == slots[1].stride(3) == 1
        and os.environ.get("FQ_TOOLKIT_BACKEND", "") in ("", "native")
        and native.problem() is None
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
    shared = 0 if slot_key.shape[0] == 1 else 1  # slots of all texts: the batch has no stride
    count = slot_key.shape[2]
    of_slot_key, of_slot_value = slot_key.stride(), slot_value.stride()
    out = torch.empty(batch, 1, heads, value_dim)
    arguments = _Decode(
        query.data_ptr(),
        key.data_ptr(),
        value.data_ptr(),
        slot_key.data_ptr(),
        slot_value.data_ptr(),
        out.data_ptr(),
        _Strides(
            *query.stride()[:2],
            *key.stride()[:3],
            *value.stride()[:3],
            shared * of_slot_key[0],
            *of_slot_key[1:3],
            shared * of_slot_value[0],
            *of_slot_value[1:3],
        ),
        batch,
        heads,
        groups,
        length,
        count,
        key_dim,
        value_dim,
        key_dim**-0.5 if scale is None else scale,
        native.threads_for(batch * heads * (length + count) * (key_dim + value_dim)),
    )
    native.check_status(native.library().fq_decode(ctypes.byref(arguments)), query)
    return out
