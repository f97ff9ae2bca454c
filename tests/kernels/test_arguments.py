"""Arguments that do not go together: refused by the op and by its fake alike, and nothing crashes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fq_toolkit import quantize
from fq_toolkit.kernels import native, ops

needs_native = pytest.mark.skipif(
    native.problem() is not None, reason=f"the native backend {native.problem()}"
)
OPS = ("quantize_forward", "quantize_backward", "ema_commit_", "quantize", "decode")


def fuzz(op: str, cases: int) -> None:
    worker = Path(__file__).with_name("fuzz_worker.py")
    command = [sys.executable, "-X", "faulthandler", str(worker), op, str(cases), "0"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    refused, answered = map(int, result.stdout.split())
    assert refused > cases // 10
    assert answered > cases // 10


@needs_native
@pytest.mark.parametrize("op", OPS)
def test_mismatched_arguments_neither_crash_nor_read_elsewhere(op: str) -> None:
    fuzz(op, 2000)


FORWARD = [torch.randn(2, 3, 1, 4), torch.randn(5, 3), torch.zeros(3), torch.ones(8) > 0]
BACKWARD = [FORWARD[0], torch.zeros(2), *FORWARD[:2], torch.zeros(8, dtype=torch.int32)]
COMMIT = [
    *(FORWARD[1], torch.ones(5), FORWARD[1].clone(), torch.zeros(3), torch.tensor(0)),
    *(torch.ones(5), torch.randn(5, 3)),
]
#: op, its tensors, the rest; which tensor is replaced by what, and how the message begins.
MISMATCHES = [
    ("forward", 0, lambda t: t[0], "x must be (B, C, P, Q), got shape (3, 1, 4)"),
    ("forward", 0, lambda t: t.long(), "x must be bfloat16 or float16 or float32 or float64"),
    (
        "forward",
        1,
        lambda t: t[:, :2],
        "codebook must be (K, C) with the channels of x = (5, 3), got shape (5, 2)",
    ),
    ("forward", 1, lambda t: t[:0], "codebook must be (K, C) with 1 to 2147483647 codes"),
    ("forward", 1, lambda t: t.double(), "codebook must be float32, got torch.float64"),
    ("forward", 1, lambda t: t.to_sparse(), "codebook must be a dense tensor"),
    ("forward", 2, lambda t: t[:1], "center must be (C,) = (3,), got shape (1,)"),
    ("forward", 3, lambda t: t[:7], "mask must be (N,) with N = B * P * Q = (8,), got shape (7,)"),
    ("forward", 3, lambda t: t.int(), "mask must be bool, got torch.int32"),
    (
        "backward",
        0,
        lambda t: t[:1],
        "grad_out must be (0,), or like x = (2, 3, 1, 4), got shape (1, 3, 1, 4)",
    ),
    ("backward", 1, lambda t: t[:1], "grad_error must be (B,) = (2,), got shape (1,)"),
    ("backward", 3, lambda t: t[:, :1], "codebook must be (K, C)"),
    ("backward", 4, lambda t: t[:3], "indices must be (N,)"),
    ("backward", 4, lambda t: t.long(), "indices must be int32, got torch.int64"),
    ("commit", 0, lambda t: t[:0], "codebook must be (K, C) with 1 to"),
    ("commit", 1, lambda t: t[:2], "ema_counts must be (K,) = (5,), got shape (2,)"),
    ("commit", 2, lambda t: torch.zeros(3, 5).t(), "ema_sums is changed in place and must be contiguous"),
    ("commit", 3, lambda t: torch.zeros(4), "center must be (C,) = (3,), got shape (4,)"),
    ("commit", 4, lambda t: t.float(), "num_updates must be int64, got torch.float32"),
    ("commit", 5, lambda t: t[:4], "counts must be (K,) = (5,), got shape (4,)"),
    ("commit", 6, lambda t: t[:4], "sums must be (K, C) = (5, 3), got shape (4, 3)"),
]
CALLS = {
    "forward": (FORWARD, lambda *t: ops._quantize_forward(*t, None, True, True, True)),
    "backward": (BACKWARD, ops._quantize_backward),
    "commit": (COMMIT, lambda *t: ops.ema_commit_(*t, 0.9, 1e-5, True)),
}


@pytest.mark.parametrize("fake", [False, True], ids=["op", "fake"])
@pytest.mark.parametrize(("op", "position", "change", "message"), MISMATCHES)
def test_message_names_what_was_given_and_expected(op, position, change, message, fake):
    tensors, call = CALLS[op]
    tensors = [change(tensor) if i == position else tensor for i, tensor in enumerate(tensors)]
    if fake and any(tensor.layout != torch.strided for tensor in tensors):
        pytest.skip("fake tensors are dense")
    if fake:
        mode = FakeTensorMode()
        tensors = [mode.from_tensor(tensor) for tensor in tensors]
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        call(*tensors)


def test_a_strength_is_one_number():
    with pytest.raises(
        ValueError, match=r"strength must be a floating-point scalar on the CPU, got shape \(2,\)"
    ):
        ops._quantize_forward(*FORWARD, torch.ones(2), True, True, True)


def test_devices_are_compared():
    x, codebook, center, mask = FORWARD
    with pytest.raises(ValueError, match="center is on meta, but must be on cpu"):
        ops._quantize_forward(x, codebook, center.to("meta"), mask, None, True, True, True)
    with pytest.raises(ValueError, match="x is on cpu and codebook on meta"):
        quantize(x, codebook.to("meta"))


@pytest.mark.parametrize("name", ["reference", "native"])
def test_an_index_beyond_the_codes_is_no_read_beyond_the_codebook(name, monkeypatch):
    if name == "native" and native.problem():
        pytest.skip(f"the native backend {native.problem()}")
    monkeypatch.setenv("FQ_TOOLKIT_BACKEND", name)
    indices = BACKWARD[4].clone()
    indices[3] = 5
    with pytest.raises(IndexError):
        ops.quantize_backward(*BACKWARD[:4], indices)


@needs_native
def test_strided_indices_are_read_as_they_are():
    wide = torch.arange(16, dtype=torch.int32) % 5
    strided = ops.quantize_backward(*BACKWARD[:4], wide[::2])
    assert torch.equal(strided, ops.quantize_backward(*BACKWARD[:4], wide[::2].clone()))
