"""The launch table is complete and within limits, and no op launches more than it needs."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from fq_toolkit.kernels.certificate import OPERAND_ERROR
from fq_toolkit.kernels.launch import (
    FAMILIES,
    FEW_ROWS,
    INTERPRETER,
    OPS,
    all_configs,
    device_capability,
    launch_config,
    shared_memory_limit,
)

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SMALL_DEVICES = ((8, 6), (8, 9), (12, 0))

capabilities = st.sampled_from((INTERPRETER, *FAMILIES, *SMALL_DEVICES, (9, 9), (11, 0)))


@given(
    op=st.sampled_from(OPS),
    n=st.integers(0, 1 << 34),
    k=st.integers(1, 1 << 17),
    d=st.integers(1, 1 << 17),
    dtype=st.sampled_from(DTYPES),
    capability=capabilities,
)
def test_every_shape_has_a_configuration(op, n, k, d, dtype, capability):
    config = launch_config(op, n, k, d, dtype, capability)
    for size in (config.block_n, config.block_k, config.block_d, config.num_warps):
        assert size > 0
        assert size & (size - 1) == 0
    if op in ("lookup", "sums"):
        assert min(config.block_n, config.block_d, config.block_k) >= 16
        assert config.dot in OPERAND_ERROR
    # The number of rows only matters through FEW_ROWS: a new batch size compiles nothing.
    assert config == launch_config(op, 1 if n <= FEW_ROWS else 1 << 40, k, d, dtype, capability)
    if capability in FAMILIES:
        assert (op, capability, dtype, config) in all_configs()


def test_small_devices_share_the_lines_of_8_0():
    for capability in SMALL_DEVICES:
        assert shared_memory_limit(capability) == 99 * 1024
        for op in OPS:
            args = (op, 1 << 20, 1024, 256, torch.float32)
            assert launch_config(*args, capability) == launch_config(*args, (8, 0))


def test_limits_of_the_three_families():
    assert [shared_memory_limit(capability) // 1024 for capability in FAMILIES] == [163, 227, 227]


def test_no_rounding_of_operands_in_the_interpreter():
    assert launch_config("lookup", 10, 10, 10, torch.float32, INTERPRETER).dot == "ieee"
    assert device_capability(torch.zeros(1)) == INTERPRETER


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="known ops: lookup"):
        launch_config("lokup", 1, 1, 1, torch.float32, (9, 0))
    with pytest.raises(ValueError, match="FQ_TOOLKIT_BACKEND=reference"):
        launch_config("lookup", 1, 1, 1, torch.float32, (7, 5))


# Small layers are bound by launches: at most three forward, one backward, one commit, and no others.

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
