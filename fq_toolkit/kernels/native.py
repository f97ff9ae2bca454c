"""Compiled C++ kernels for CPU tensors: the folder `cpu`, built at first use and called through ctypes.

The library is compiled for the processor it will run on, with the machine's own C++ compiler, in a few
seconds; it is kept in ``$FQ_TOOLKIT_CACHE`` (default ``~/.cache/fq-toolkit``) under a name that changes with
the source, the compiler and the processor (see `fq_toolkit.kernels.native_build`).  Without a
compiler the reference kernels take over.
"""

from __future__ import annotations

import ctypes
import functools
import logging

import torch
from torch import Tensor

from fq_toolkit.kernels import native_build

logger = logging.getLogger("fq_toolkit")

#: Names of the element types in the C++ source.
_FEATURES = {
    torch.float16: "_Float16",
    torch.bfloat16: "BFloat16",
    torch.float32: "float",
    torch.float64: "double",
}
#: Below this many multiply-adds a second thread costs more than it saves.
_WORK_PER_THREAD = 200_000

_Pointer = ctypes.c_void_p
_Sizes = ctypes.POINTER(ctypes.c_int64)


class _Forward(ctypes.Structure):
    """Mirrors ``ForwardArguments`` of the C++ source."""

    _fields_ = (
        ("x", _Pointer), ("shape", _Sizes), ("strides", _Sizes), ("out_strides", _Sizes), ("codebook",
        _Pointer), ("center", _Pointer), ("num_codes", ctypes.c_int64), ("mask", _Pointer), ("strength",
        ctypes.c_double), ("out", _Pointer), ("indices", _Pointer), ("sq_error", _Pointer), ("counts",
        _Pointer), ("sums", _Pointer), ("exact", ctypes.c_int32), ("threads", ctypes.c_int32),
    )  # fmt: skip


class _Backward(ctypes.Structure):
    """Mirrors ``BackwardArguments`` of the C++ source."""

    _fields_ = (
        ("x", _Pointer), ("shape", _Sizes), ("strides", _Sizes), ("grad_strides", _Sizes), ("out_strides",
        _Sizes), ("codebook", _Pointer), ("indices", _Pointer), ("grad_error", _Pointer), ("grad", _Pointer),
        ("out", _Pointer), ("num_codes", ctypes.c_int64), ("threads", ctypes.c_int32),
    )  # fmt: skip


class _Commit(ctypes.Structure):
    """Mirrors ``CommitArguments`` of the C++ source."""

    _fields_ = (
        ("codebook", _Pointer), ("ema_counts", _Pointer), ("ema_sums", _Pointer), ("center", _Pointer),
        ("num_updates", _Pointer), ("counts", _Pointer), ("sums", _Pointer),
        ("num_codes", ctypes.c_int64), ("channels", ctypes.c_int64), ("decay", ctypes.c_double),
        ("eps", ctypes.c_double), ("debias", ctypes.c_int32),
    )  # fmt: skip


@functools.lru_cache
def library(dtype: torch.dtype = torch.float32) -> ctypes.CDLL:
    """Return the library for features of one dtype, compiled if need be.

    Raises:
        BuildError: when it cannot be.
    """
    return native_build.load(_FEATURES[dtype])


@functools.lru_cache
def problem(dtype: torch.dtype = torch.float32) -> str | None:
    """Return why features of this dtype cannot use the compiled kernels, or None; the first call compiles."""
    try:
        loaded = library(dtype)
    except (native_build.BuildError, OSError) as error:
        return f"cannot be built: {error}"
    if not loaded.fq_parallel():
        logger.warning("the compiler has no OpenMP: the CPU kernels will run on one thread")
    return None


def _sizes(values: tuple[int, ...]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(values))(*values)


def threads_for(work: int) -> int:
    """Return how many threads so many multiply-adds are worth."""
    return max(1, min(torch.get_num_threads(), work // _WORK_PER_THREAD))


def check_status(status: int, x: Tensor) -> None:
    """Raise what a kernel that was called for a tensor returned.

    Raises:
        MemoryError: when memory ran out.
        IndexError: when an index belongs to no code.
    """
    if status == 2:
        raise IndexError(
            f"the indices of features of shape {tuple(x.shape)} point beyond the codebook: they must be "
            "those of the forward pass with this codebook"
        )
    if status != 0:
        raise MemoryError(f"out of memory in the CPU kernels, on a tensor of shape {tuple(x.shape)}")


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
    """Run `fq_toolkit.kernels.reference.quantize_forward` in compiled code."""
    batch, channels, height, width = x.shape
    num_codes = codebook.shape[0]
    codebook, center = codebook.contiguous(), center.contiguous()
    out = torch.empty_like(x) if with_output else x.new_empty(0)
    indices = x.new_empty(batch * height * width, dtype=torch.int32)  # whatever the default device
    sq_error = x.new_empty(batch, dtype=torch.float32)
    counts = x.new_empty(num_codes, dtype=torch.int64)
    sums = x.new_empty(num_codes if with_sums else 0, channels, dtype=torch.float32)
    if mask is not None:
        mask = mask.contiguous()
    arguments = _Forward(
        x=x.data_ptr(),
        shape=_sizes(tuple(x.shape)),
        strides=_sizes(x.stride()),
        out_strides=_sizes(out.stride() if with_output else x.stride()),
        codebook=codebook.data_ptr(),
        center=center.data_ptr(),
        num_codes=num_codes,
        mask=mask.data_ptr() if mask is not None else None,
        strength=strength,
        out=out.data_ptr() if with_output else None,
        indices=indices.data_ptr(),
        sq_error=sq_error.data_ptr(),
        counts=counts.data_ptr(),
        sums=sums.data_ptr() if with_sums else None,
        exact=exact,
        threads=threads_for(indices.numel() * num_codes * channels),
    )
    check_status(library(x.dtype).fq_quantize_forward(ctypes.byref(arguments)), x)
    return out, indices, sq_error, counts, sums


def quantize_backward(
    grad_out: Tensor, grad_error: Tensor, x: Tensor, codebook: Tensor, indices: Tensor
) -> Tensor:
    """Run `fq_toolkit.kernels.reference.quantize_backward` in compiled code."""
    gradient = torch.empty_like(x)
    if gradient.numel() == 0:
        return gradient
    # Named, so that a copy outlives the call.
    codebook, grad_error, indices = codebook.contiguous(), grad_error.contiguous(), indices.contiguous()
    passed = grad_out.numel() > 0
    arguments = _Backward(
        x=x.data_ptr(),
        shape=_sizes(tuple(x.shape)),
        strides=_sizes(x.stride()),
        grad_strides=_sizes(grad_out.stride() if passed else x.stride()),
        out_strides=_sizes(gradient.stride()),
        codebook=codebook.data_ptr(),
        indices=indices.data_ptr(),
        grad_error=grad_error.data_ptr(),
        grad=grad_out.data_ptr() if passed else None,
        out=gradient.data_ptr(),
        num_codes=codebook.shape[0],
        # Loads and stores, hardly any arithmetic: an element is worth about 16 multiply-adds.
        threads=threads_for(16 * x.numel()),
    )
    check_status(library(x.dtype).fq_quantize_backward(ctypes.byref(arguments)), x)
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
    """Run `fq_toolkit.kernels.reference.ema_commit_` in compiled code."""
    counts, sums = counts.to(torch.float32).contiguous(), sums.contiguous()
    arguments = _Commit(
        codebook=codebook.data_ptr(),
        ema_counts=ema_counts.data_ptr(),
        ema_sums=ema_sums.data_ptr(),
        center=center.data_ptr(),
        num_updates=num_updates.data_ptr(),
        counts=counts.data_ptr(),
        sums=sums.data_ptr(),
        num_codes=codebook.shape[0],
        channels=codebook.shape[1],
        decay=decay,
        eps=eps,
        debias=debias,
    )
    check_status(library().fq_ema_commit(ctypes.byref(arguments)), codebook)
