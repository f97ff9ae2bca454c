"""Checks of the arguments of the ops against each other, before a kernel follows the first pointer.

Compiled kernels know nothing of tensors: a codebook of another width or a mask of another length would be
read beyond its end, and give plausible numbers or no process at all.  Each check is one expression while all
is well, as it runs in every call; what is wrong is looked for only then.  The ops and their fakes share the
checks, so that a compiled graph refuses what eager code refuses.
"""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

_strided, _float32, _int32 = torch.strided, torch.float32, torch.int32
#: Dtypes of features.
FEATURES = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))
#: Dtypes of the counts of a batch.
COUNTS = frozenset((torch.int32, torch.int64, torch.float32, torch.float64))
#: Indices are 32-bit integers.
MOST_CODES = 2**31 - 1

Shape = tuple[int, ...]


def _refuse(problem: str) -> NoReturn:
    raise ValueError(f"{problem}; nothing was computed")


def _check_one(
    name: str, tensor: Tensor, shape: Shape, meaning: str, dtypes: frozenset[torch.dtype], like: Tensor
) -> None:
    """Raise if a tensor is not dense, of this shape, of one of these dtypes and on the device of another."""
    if tensor.layout != _strided:
        _refuse(f"{name} must be a dense tensor, got {tensor.layout}: call {name}.to_dense() first")
    if tensor.dtype not in dtypes:
        expected = " or ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        _refuse(f"{name} must be {expected}, got {tensor.dtype}: convert it with .to()")
    if tuple(tensor.shape) != shape:
        _refuse(f"{name} must be {meaning} = {tuple(shape)}, got shape {tuple(tensor.shape)}")
    if tensor.device != like.device:
        _refuse(f"{name} is on {tensor.device}, but must be on {like.device} with the rest: move it there")


def _check_pair(x: Tensor, codebook: Tensor) -> None:
    """Raise if features and a codebook do not belong together."""
    if x.layout != _strided:
        _refuse(f"x must be a dense tensor, got {x.layout}: call x.to_dense() first")
    if x.ndim != 4:
        _refuse(f"x must be (B, C, P, Q), got shape {tuple(x.shape)}")
    _check_one("x", x, tuple(x.shape), "(B, C, P, Q)", FEATURES, x)
    _check_codebook(codebook)
    meaning = "(K, C) with the channels of x"
    _check_one("codebook", codebook, (codebook.shape[0], x.shape[1]), meaning, frozenset((_float32,)), x)


def _check_codebook(codebook: Tensor) -> None:
    if codebook.ndim != 2 or not 1 <= codebook.shape[0] <= MOST_CODES:
        _refuse(f"codebook must be (K, C) with 1 to {MOST_CODES} codes, got shape {tuple(codebook.shape)}")


def _check_given(**tensors: Tensor | None) -> None:
    """Raise TypeError for None, which the dispatcher lets pass as a tensor."""
    for name, tensor in tensors.items():
        if tensor is None:
            raise TypeError(f"{name} must be a tensor, got None")


def check_forward(
    x: Tensor, codebook: Tensor, center: Tensor, mask: Tensor | None, strength: Tensor | None
) -> None:
    """Check the arguments of ``quantize_forward``.

    Raises:
        TypeError: None for a tensor.
        ValueError: a shape, dtype, device or memory layout that does not go with the rest.
    """
    if x is None or codebook is None or center is None:
        _check_given(x=x, codebook=codebook, center=center)
    shape, device = x.shape, x.device
    if (
        len(shape) == 4
        and codebook.ndim == 2
        and center.ndim == 1
        and codebook.shape[1] == shape[1] == center.shape[0]
        and 1 <= codebook.shape[0] <= MOST_CODES
        and x.dtype in FEATURES
        and codebook.dtype is _float32
        and center.dtype is _float32
        and codebook.device == device
        and center.device == device
        and x.layout is codebook.layout is center.layout is _strided
        and (
            strength is None
            or (strength.ndim == 0 and strength.is_floating_point() and strength.device.type == "cpu")
        )
        and (
            mask is None
            or (
                mask.dtype is torch.bool
                and mask.ndim == 1
                and mask.shape[0] == shape[0] * shape[2] * shape[3]
                and mask.device == device
                and mask.layout is _strided
            )
        )
    ):
        return
    _check_pair(x, codebook)
    _check_one("center", center, (shape[1],), "(C,)", frozenset((_float32,)), x)
    if mask is not None:
        rows = shape[0] * shape[2] * shape[3]
        _check_one("mask", mask, (rows,), "(N,) with N = B * P * Q", frozenset((torch.bool,)), x)
    if strength is not None:
        given = f"shape {tuple(strength.shape)} of {strength.dtype} on {strength.device}"
        _refuse(f"strength must be a floating-point scalar on the CPU, got {given}")


def check_backward(
    grad_out: Tensor, grad_error: Tensor, x: Tensor, codebook: Tensor, indices: Tensor
) -> None:
    """Check the arguments of ``quantize_backward``; the kernels themselves look at the values of indices.

    Raises:
        TypeError: None for a tensor.
        ValueError: a shape, dtype, device or memory layout that does not go with the rest.
    """
    if grad_out is None or grad_error is None or x is None or codebook is None or indices is None:
        _check_given(grad_out=grad_out, grad_error=grad_error, x=x, codebook=codebook, indices=indices)
    shape, device = x.shape, x.device
    if (
        len(shape) == 4
        and codebook.ndim == 2
        and codebook.shape[1] == shape[1]
        and 1 <= codebook.shape[0] <= MOST_CODES
        and indices.ndim == 1
        and indices.shape[0] == shape[0] * shape[2] * shape[3]
        and grad_error.ndim == 1
        and grad_error.shape[0] == shape[0]
        and (grad_out.shape == shape or grad_out.shape == (0,))
        and x.dtype in FEATURES
        and grad_out.dtype is x.dtype
        and codebook.dtype is grad_error.dtype is _float32
        and indices.dtype is _int32
        and codebook.device == device
        and indices.device == device
        and grad_error.device == device
        and grad_out.device == device
        and x.layout is codebook.layout is indices.layout is grad_error.layout is grad_out.layout is _strided
    ):
        return
    _check_pair(x, codebook)
    single = frozenset((_float32,))
    rows = shape[0] * shape[2] * shape[3]
    _check_one("indices", indices, (rows,), "(N,) with N = B * P * Q", frozenset((_int32,)), x)
    _check_one("grad_error", grad_error, (shape[0],), "(B,)", single, x)
    _check_one("grad_out", grad_out, tuple(shape), "(0,), or like x", frozenset((x.dtype,)), x)


def check_commit(
    codebook: Tensor,
    ema_counts: Tensor,
    ema_sums: Tensor,
    center: Tensor,
    num_updates: Tensor,
    counts: Tensor,
    sums: Tensor,
    decay: float,
    eps: float,
) -> None:
    """Check the arguments of ``ema_commit_``.

    Raises:
        TypeError: None for a tensor.
        ValueError: a shape, dtype, device or memory layout that does not go with the rest, or a number
            outside its range.
    """
    if codebook is None or ema_counts is None or ema_sums is None or center is None:
        _check_given(codebook=codebook, ema_counts=ema_counts, ema_sums=ema_sums, center=center)
    if num_updates is None or counts is None or sums is None:
        _check_given(num_updates=num_updates, counts=counts, sums=sums)
    shape, device = codebook.shape, codebook.device
    if (
        len(shape) == 2
        and 1 <= shape[0] <= MOST_CODES
        and ema_sums.shape == shape
        and sums.shape == shape
        and ema_counts.ndim == counts.ndim == center.ndim == 1
        and ema_counts.shape[0] == counts.shape[0] == shape[0]
        and center.shape[0] == shape[1]
        and num_updates.ndim == 0
        and codebook.dtype is ema_counts.dtype is ema_sums.dtype is center.dtype is sums.dtype is _float32
        and counts.dtype in COUNTS
        and num_updates.dtype is torch.int64
        and codebook.layout is ema_counts.layout is ema_sums.layout is center.layout is _strided
        and num_updates.layout is counts.layout is sums.layout is _strided
        and ema_counts.device == device
        and ema_sums.device == device
        and center.device == device
        and num_updates.device == device
        and counts.device == device
        and sums.device == device
        and codebook.is_contiguous()
        and ema_counts.is_contiguous()
        and ema_sums.is_contiguous()
        and center.is_contiguous()
        and 0 <= decay < 1
        and 0 <= eps < float("inf")
    ):
        return
    _check_codebook(codebook)
    num_codes, dim = shape
    single = frozenset((_float32,))
    _check_one("codebook", codebook, (num_codes, dim), "(K, C)", single, codebook)
    _check_one("ema_counts", ema_counts, (num_codes,), "(K,)", single, codebook)
    _check_one("ema_sums", ema_sums, (num_codes, dim), "(K, C)", single, codebook)
    _check_one("center", center, (dim,), "(C,)", single, codebook)
    _check_one("num_updates", num_updates, (), "a scalar", frozenset((torch.int64,)), codebook)
    _check_one("counts", counts, (num_codes,), "(K,)", COUNTS, codebook)
    _check_one("sums", sums, (num_codes, dim), "(K, C)", single, codebook)
    changed = {"codebook": codebook, "ema_counts": ema_counts, "ema_sums": ema_sums, "center": center}
    for name, tensor in changed.items():
        if not tensor.is_contiguous():
            _refuse(
                f"{name} is changed in place and must be contiguous, got shape {tuple(tensor.shape)} with "
                f"strides {tensor.stride()}: pass {name}.contiguous() and copy the result back"
            )
    if not 0 <= decay < 1:
        _refuse(f"decay must be in [0, 1), got {decay}")
    _refuse(f"eps must be in [0, inf), got {eps}")
