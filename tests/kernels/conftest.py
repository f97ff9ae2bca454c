"""Load the Triton kernels for Triton's interpreter where there is no GPU, without changing the environment.

Triton decides between compiling and interpreting when a function is decorated, its own library included. So
the variable is set only while Triton and the kernels are imported: the rest of the session keeps its usual
backend.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fq_toolkit.kernels.ops import interpreter_problem

KERNELS = [f"fq_toolkit.kernels.{op}_triton" for op in ("lookup", "segment_sums", "commit", "backward")]


def _load_interpreted() -> str | None:
    """Import the kernels; return why they cannot run here, or None."""
    if torch.cuda.is_available():
        return None
    if problem := interpreter_problem():
        return problem
    before = os.environ.get("TRITON_INTERPRET")
    if "triton" in sys.modules and type(sys.modules["triton"].language.sum).__name__ != "InterpretedFunction":
        pytest.exit("Triton was imported for compilation before tests/kernels was collected", returncode=3)
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        for kernel in KERNELS:
            importlib.import_module(kernel)
    finally:
        if before is None:
            del os.environ["TRITON_INTERPRET"]
        else:
            os.environ["TRITON_INTERPRET"] = before
    return None


PROBLEM = _load_interpreted()


@pytest.fixture
def kernel_device(monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the device that the Triton kernels run on here: a GPU, or the interpreter on the CPU."""
    if PROBLEM:
        pytest.skip(PROBLEM)
    if torch.cuda.is_available():
        return "cuda"
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # a first launch imports more of Triton
    return "cpu"


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what `torch.empty` returns with NaN or -99, so that an unwritten element shows."""

    def poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrapper(*args: object, **kwargs: object) -> Tensor:
            fresh = make(*args, **kwargs)
            return fresh.fill_(float("nan") if fresh.is_floating_point() else -99)

        return wrapper

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(Tensor, "new_empty", poisoned(Tensor.new_empty))


def _strided(rows: Tensor, shape: tuple[int, int, int], layout: str) -> Tensor:
    batch, height, width = shape
    x = rows.view(batch, height, width, -1).permute(0, 3, 1, 2)
    if layout == "channels_last":
        return x
    x = x.contiguous()
    if layout == "nchw":
        return x
    big = x.new_full((batch, x.shape[1] + 2, height * 2, width + 3), float("nan"))
    view = big[:, 1:-1, ::2, 2:-1]
    view.copy_(x)
    return view


@pytest.fixture(scope="session")
def strided() -> Callable[[Tensor, tuple[int, int, int], str], Tensor]:
    """Return a function that lays ``(N, C)`` rows out as ``(B, C, P, Q)`` with the strides of a layout."""
    return _strided
