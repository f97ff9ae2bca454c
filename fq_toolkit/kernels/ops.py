"""The ops of the quantizer as `torch.library` custom ops, and the choice of the backend that runs them.

====================  ===========================================================================
``quantize_forward``  nearest centroid, output, squared error per sample, per-code counts and sums
``quantize_backward`` gradient of the features; differentiable again
``ema_commit_``       one moving-average step of the dictionary, in place
====================  ===========================================================================

`fq_toolkit.kernels.reference` defines what each computes and documents the arguments.  Three backends run
them: ``triton`` on CUDA tensors, ``native`` (compiled C++) on CPU tensors, and ``reference`` (plain torch)
elsewhere.  The environment variable ``FQ_TOOLKIT_BACKEND`` overrides the choice; ``triton`` on a CPU needs
``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fq_toolkit.kernels import native, private, reference
from fq_toolkit.kernels.arguments import check_backward, check_commit, check_forward

logger = logging.getLogger("fq_toolkit")

_CPU = torch.device("cpu")

BACKENDS = ("reference", "native", "triton")


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def interpreter_problem() -> str | None:
    """Return why Triton's interpreter cannot run here, or None."""
    try:
        triton, numpy = (
            tuple(int(part) for part in version(name).split(".")[:2]) for name in ("triton", "numpy")
        )
    except PackageNotFoundError as error:
        return f"needs {error.name}"
    if triton < (3, 7) and numpy >= (2, 4):
        return "the interpreter of Triton before 3.7 needs NumPy before 2.4"
    return None


@functools.lru_cache
def _triton_problem(device_type: str, interpreting: bool) -> str | None:
    """Return why the Triton kernels cannot run on tensors of this device, or None."""
    if interpreting and (problem := interpreter_problem()):
        return problem
    try:
        # Lazily, as Triton takes long to import and may be missing or broken.
        importlib.import_module("fq_toolkit.kernels.lookup_triton")
    except Exception as error:  # a broken Triton fails in many ways, not only with ImportError
        return f"triton cannot be imported ({type(error).__name__}: {error})"
    if device_type == "cuda" or interpreting:
        return None
    return f"needs CUDA tensors, not {device_type} (TRITON_INTERPRET=1 runs it slowly on the CPU, for tests)"


def _problem(backend: str, device_type: str, dtype: torch.dtype) -> str | None:
    if backend == "triton":
        return _triton_problem(device_type, _interpreting())
    if backend == "native":
        return native.problem(dtype) if device_type == "cpu" else f"needs CPU tensors, not {device_type}"
    return None


@functools.lru_cache
def _choose(device_type: str, dtype: torch.dtype, wanted: str, interpreting: bool) -> str:
    if wanted:
        if wanted not in BACKENDS:
            raise ValueError(
                f"FQ_TOOLKIT_BACKEND={wanted!r} is not a backend; choose one of {', '.join(BACKENDS)}"
            )
        problem = _problem(wanted, device_type, dtype)
        if problem:
            raise RuntimeError(f"FQ_TOOLKIT_BACKEND={wanted} cannot run here: {problem}")
        return wanted
    preferred = "native" if device_type == "cpu" else "triton"
    problem = _problem(preferred, device_type, dtype)
    if problem is None:
        return preferred
    logger.warning(
        "using the plain torch kernels on %s for %s: the %s backend %s",
        device_type,
        dtype,
        preferred,
        problem,
    )
    return "reference"


def select_backend(x: Tensor) -> str:
    """Name of the backend that runs the ops on ``x``: "triton", "native" or "reference"."""
    return _choose(x.device.type, x.dtype, os.environ.get("FQ_TOOLKIT_BACKEND", ""), _interpreting())


def backend_report() -> dict[str, str]:
    """Return for each backend "usable" or the reason why it is not, on the best device of this machine."""
    report = {}
    for backend in BACKENDS:
        device_type = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
        report[backend] = _problem(backend, device_type, torch.float32) or "usable"
    return report


def _triton(op: str) -> ModuleType:
    return importlib.import_module(f"fq_toolkit.kernels.{op}_triton")


@torch.library.custom_op("fq_toolkit::quantize_forward", mutates_args=())
def _quantize_forward(
    x: Tensor,
    codebook: Tensor,
    center: Tensor,
    mask: Tensor | None,
    strength: Tensor | None,
    with_output: bool,
    with_sums: bool,
    exact: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    check_forward(x, codebook, center, mask, strength)
    backend = select_backend(x)
    # On the CPU, so that reading it waits for no device. None is 1, as nearly always.
    blend = 1.0 if strength is None else float(strength)
    if backend == "triton":
        # Not cleared here: the lookup does it in passing, and saves the sums a launch.
        segments = _triton("segment_sums")
        tickets = torch.empty(segments.TICKETS, dtype=torch.int32, device=x.device)
        out, indices, row_error = _triton("lookup").lookup(
            x, codebook, center, mask, blend, with_output, exact, tickets=tickets
        )
        sq_error, counts, sums = segments.segment_sums(
            x, indices, row_error, codebook.shape[0], with_sums, tickets=tickets
        )
        return out, indices, sq_error, counts, sums
    run = native.quantize_forward if backend == "native" else reference.quantize_forward
    return run(x, codebook, center, mask, blend, with_output, with_sums, exact)


@_quantize_forward.register_fake
def _(
    x: Tensor,
    codebook: Tensor,
    center: Tensor,
    mask: Tensor | None,
    strength: Tensor | None,
    with_output: bool,
    with_sums: bool,
    exact: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    check_forward(x, codebook, center, mask, strength)
    batch, channels, height, width = x.shape
    num_codes = codebook.shape[0]
    return (
        torch.empty_like(x) if with_output else x.new_empty(0),
        x.new_empty(batch * height * width, dtype=torch.int32),
        x.new_empty(batch, dtype=torch.float32),
        x.new_empty(num_codes, dtype=torch.int64),
        x.new_empty(num_codes if with_sums else 0, channels, dtype=torch.float32),
    )


@torch.library.custom_op("fq_toolkit::quantize_backward", mutates_args=())
def _quantize_backward(
    grad_out: Tensor, grad_error: Tensor, x: Tensor, codebook: Tensor, indices: Tensor
) -> Tensor:
    check_backward(grad_out, grad_error, x, codebook, indices)
    backend = select_backend(x)
    if backend == "triton":
        return _triton("backward").quantize_backward(grad_out, grad_error, x, codebook, indices)
    run = native.quantize_backward if backend == "native" else reference.quantize_backward
    return run(grad_out, grad_error, x, codebook, indices)


@_quantize_backward.register_fake
def _(grad_out: Tensor, grad_error: Tensor, x: Tensor, codebook: Tensor, indices: Tensor) -> Tensor:
    check_backward(grad_out, grad_error, x, codebook, indices)
    return torch.empty_like(x)


@torch.library.custom_op(
    "fq_toolkit::ema_commit_",
    mutates_args=("codebook", "ema_counts", "ema_sums", "center", "num_updates"),
)
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
    """Move the averages by one step, in place; see `fq_toolkit.kernels.reference.ema_commit_`."""
    check_commit(codebook, ema_counts, ema_sums, center, num_updates, counts, sums, decay, eps)
    backend = select_backend(codebook)
    if backend == "triton":
        run = _triton("commit").ema_commit_
    else:
        run = native.ema_commit_ if backend == "native" else reference.ema_commit_
    run(
        codebook,
        ema_counts,
        ema_sums,
        center,
        num_updates,
        counts,
        sums,
        decay,
        eps,
        debias,
    )


@ema_commit_.register_fake
def _(
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
    check_commit(codebook, ema_counts, ema_sums, center, num_updates, counts, sums, decay, eps)


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, codebook, *_ = inputs
    # Not q, which is as large as x: the backward pass gathers it again by index. The codebook is a copy where
    # the layer goes on to move it.
    ctx.save_for_backward(x, codebook, output[1])
    # Undefined gradients stay None, so that "no gradient of the loss" costs no zeros and no kernel.
    ctx.set_materialize_grads(False)


def _forward_gradient(
    ctx: Any, grad_out: Tensor | None, _indices: Any, grad_error: Tensor | None, *_: Any
) -> Any:
    """Pass the gradient of the output straight through, and add that of the squared error.

    ``dx = grad_out + 2 grad_error (x - q)``: the straight-through estimator of VQ-VAE (arXiv 1711.00937,
    section 3.2), beside the gradient of the commitment term, in which ``q`` is a constant.
    """
    x, codebook, indices = ctx.saved_tensors
    if grad_error is None:
        gradient = grad_out  # straight through, and nothing else
    else:
        absent = grad_out is None or (grad_out.numel() == 0 and x.numel() > 0)
        gradient = _quantize_backward(
            x.new_empty(0) if absent else grad_out, grad_error, x, codebook, indices
        )
    return gradient, None, None, None, None, None, None, None


_quantize_forward.register_autograd(_forward_gradient, setup_context=_save_forward)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_out, grad_error, x, codebook, indices = inputs
    ctx.save_for_backward(grad_error, x, codebook, indices)
    ctx.with_grad_out = grad_out.numel() > 0


def _backward_gradient(ctx: Any, grad: Tensor) -> Any:
    """Compute the second order in plain torch, so that every higher order follows."""
    grad_error, x, codebook, indices = ctx.saved_tensors
    batch, _, height, width = x.shape
    working = torch.float64 if x.dtype == torch.float64 else torch.float32
    index = indices.view(batch, height, width)
    valid = (index >= 0)[:, None]
    quantized = codebook[index.clamp(min=0).long()].permute(0, 3, 1, 2).to(working)
    residual = torch.where(valid, x.to(working) - quantized, 0.0)
    grad_wide = grad.to(working)
    grad_of_error = 2 * (residual * grad_wide).sum(dim=(1, 2, 3))
    grad_of_x = 2 * grad_error.to(working)[:, None, None, None] * torch.where(valid, grad_wide, 0.0)
    return (
        grad if ctx.with_grad_out else grad.new_zeros(0),
        grad_of_error.to(grad_error.dtype),
        grad_of_x.to(x.dtype),
        None,
        None,
    )


_quantize_backward.register_autograd(_backward_gradient, setup_context=_save_backward)


def quantize_forward(
    x: Tensor,
    codebook: Tensor,
    center: Tensor,
    mask: Tensor | None,
    strength: float | Tensor,
    with_output: bool,
    with_sums: bool,
    exact: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Look up every row; see `fq_toolkit.kernels.reference.quantize_forward` for arguments and results.

    The output and the squared error are differentiable with respect to ``x``, to any order.  While a graph is
    being exported, and inside transforms of `torch.func`, the same arithmetic runs as plain torch.

    ``strength`` may be a scalar tensor on the CPU, on whose value no compiled graph depends.
    """
    if private.under_export():
        return reference.quantize_forward_traceable(
            x, codebook, center, mask, float(strength), with_output, with_sums, exact
        )
    if private.under_transform():
        return reference.quantize_forward_transformable(
            x, codebook, center, mask, float(strength), with_output, with_sums, exact
        )
    if isinstance(strength, Tensor):
        blend: Tensor | None = strength
    else:
        blend = None if strength == 1 else torch.tensor(strength, dtype=reference.widest(_CPU), device="cpu")
    return _quantize_forward(x, codebook, center, mask, blend, with_output, with_sums, exact)


def quantize_backward(
    grad_out: Tensor, grad_error: Tensor, x: Tensor, codebook: Tensor, indices: Tensor
) -> Tensor:
    """Compute the gradient of the features, differentiable; see `reference.quantize_backward`."""
    return _quantize_backward(grad_out, grad_error, x, codebook, indices)
