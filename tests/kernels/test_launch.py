"""The launch table is complete, within limits, and the same for every batch size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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
