"""Small layers are bound by launches: at most three forward, one backward, one commit, and no others."""

from __future__ import annotations

import os

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

# What torch itself does on the device while our launchers run; views and allocations launch nothing.
FREE = (
    "empty",
    "new_empty",
    "view",
    "as_strided",
    "detach",
    "alias",
    "permute",
    "slice",
    "select",
    "expand",
    "_reshape_alias",
)


class TorchWork(TorchDispatchMode):
    """Collect the torch operators that launch something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if not name.startswith(FREE):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def launches(kernel_device, monkeypatch):
    """A list that grows by a name with every Triton launch in the interpreter."""
    if kernel_device == "cuda":
        pytest.skip("counts launches of the interpreter")
    assert os.environ["TRITON_INTERPRET"] == "1"
    from triton.runtime import interpreter

    seen: list[str] = []
    launch = interpreter.GridExecutor.__call__

    def record(self, *args, **kwargs):
        seen.append(self.fn.__name__)
        with torch.utils._python_dispatch._disable_current_modes():  # what the interpreter does is no launch
            return launch(self, *args, **kwargs)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", record)
    return seen


@pytest.mark.parametrize("rows", [40, 8192 + 40])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_three_forward(launches, rows, strength):
    from fq_toolkit.kernels import lookup_triton, segment_sums_triton
    from fq_toolkit.kernels.segment_sums_triton import split_rows

    x, codebook = torch.randn(rows, 4, 1, 1), torch.randn(8, 4)
    center, mask = torch.zeros(4), torch.ones(rows, dtype=torch.bool)
    with TorchWork() as work:
        tickets = torch.empty(segment_sums_triton.TICKETS, dtype=torch.int32)
        _, indices, error = lookup_triton.lookup(
            x, codebook, center, mask, strength, True, True, tickets=tickets
        )
        segment_sums_triton.segment_sums(x, indices, error, 8, True, tickets=tickets)
    assert launches == ["_coarse_kernel", "_rescore_kernel", "_segment_kernel"]
    assert work.found == []
    assert (split_rows(rows, 8, 4, 1)[0] > 1) == (rows > 8192)


def test_the_op_passes_the_tickets_on(launches, monkeypatch):
    from fq_toolkit.kernels import ops

    monkeypatch.setenv("FQ_TOOLKIT_BACKEND", "triton")
    x = torch.randn(8192 + 40, 2, 1, 1)
    ops.quantize_forward(x, torch.randn(3, 2), torch.zeros(2), None, 1.0, True, True, True)
    assert launches == ["_coarse_kernel", "_rescore_kernel", "_segment_kernel"]


def test_one_backward(launches):
    from fq_toolkit.kernels import backward_triton

    x = torch.randn(40, 4, 1, 1)
    with TorchWork() as work:
        backward_triton.quantize_backward(
            torch.randn_like(x), torch.randn(40), x, torch.randn(8, 4), torch.zeros(40, dtype=torch.int32)
        )
    assert len(launches) == 1
    assert [name for name in work.found if name not in ("randn_like", "randn", "zeros")] == []


@pytest.mark.parametrize("debias", [False, True])
def test_one_commit(launches, debias):
    from fq_toolkit.kernels import commit_triton

    state = [torch.randn(40, 4), torch.rand(40), torch.randn(40, 4), torch.randn(4), torch.tensor(0)]
    args = (torch.ones(40, dtype=torch.int64), torch.randn(40, 4), 0.9, 1e-5, debias)
    commit_triton.ema_commit_(*state, *args)  # the first one on a stream clears its counter
    launches.clear()
    with TorchWork() as work:
        commit_triton.ema_commit_(*state, *args)
    assert launches == ["_commit_kernel"]
    assert work.found == []
    assert state[-1] == 2


def test_used_tickets_are_cleared(launches):
    from fq_toolkit.kernels import lookup_triton, segment_sums_triton

    x, codebook, tickets = torch.randn(70, 4, 1, 1), torch.randn(8, 4), torch.full((512,), 5).int()
    _, indices, error = lookup_triton.lookup(
        x, codebook, torch.zeros(4), None, 1.0, False, True, tickets=tickets
    )
    split = segment_sums_triton.segment_sums(x, indices, error, 8, True, tickets=tickets, splits=5)
    fresh = segment_sums_triton.segment_sums(x, indices, error, 8, True, splits=5)
    assert all(torch.equal(one, other) for one, other in zip(split, fresh, strict=True))
