"""The ops on the Triton backend: the same results as the reference, with gradients to second order."""

from __future__ import annotations

import pytest
import torch

from fq_toolkit.kernels import ops, reference


@pytest.fixture(autouse=True)
def triton_backend(kernel_device, monkeypatch):
    monkeypatch.setenv("FQ_TOOLKIT_BACKEND", "triton")
    assert ops.select_backend(torch.empty(0, device=kernel_device)) == "triton"
    torch.set_default_device(kernel_device)
    yield
    torch.set_default_device(None)


def arguments(dtype=torch.float32):
    x = torch.randn(2, 6, 3, 4, dtype=dtype)
    x[1, 2, 0, 3] = float("nan")
    mask = torch.arange(24) % 5 != 1
    return x, torch.randn(9, 6), torch.randn(6), mask, 0.25, True, True, True


def test_forward_equals_the_reference():
    args = arguments()
    out, indices, sq_error, counts, sums = ops.quantize_forward(*args)
    wanted = reference.quantize_forward(*args)
    torch.testing.assert_close(out, wanted[0], equal_nan=True)
    assert torch.equal(indices, wanted[1])
    assert torch.equal(counts, wanted[3])
    torch.testing.assert_close((sq_error, sums), (wanted[2], wanted[4]))
    assert (indices < 0).sum() > 2


def test_operator_checks():
    x, *rest = arguments(torch.float64)
    x = x.nan_to_num(0.5).requires_grad_()
    rest[3] = torch.tensor(rest[3])  # the op itself takes the strength as a tensor
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.fq_toolkit.quantize_forward.default, (x, *rest), test_utils=tests)


def test_gradients_of_first_and_second_order():
    x, codebook, center, *_ = arguments(torch.float64)
    x = x.nan_to_num(0.5)[:, :, :1, :2].contiguous().requires_grad_()

    def loss(x):
        return ops.quantize_forward(x, codebook, center, None, 1.0, True, False, True)[2].double()

    index = ops.quantize_forward(x, codebook, center, None, 1.0, True, False, True)[1].view(2, 1, 2).long()
    quantized = codebook[index].permute(0, 3, 1, 2)
    weight = torch.tensor([1.0, -2.0], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(loss(x) @ weight, x, create_graph=True)
    torch.testing.assert_close(gradient, 2 * weight.view(2, 1, 1, 1) * (x - quantized))
    (second,) = torch.autograd.grad(gradient.square().sum(), x)
    torch.testing.assert_close(second, 8 * weight.view(2, 1, 1, 1).square() * (x - quantized))


def test_straight_through_passes_the_gradient_on():
    x, *rest = arguments()
    x.requires_grad_()
    out = ops.quantize_forward(x, *rest)[0]
    upstream = torch.randn(out.shape)
    (gradient,) = torch.autograd.grad(out, x, upstream)
    assert torch.equal(gradient, upstream)


def test_commit_changes_its_arguments():
    state = [torch.randn(9, 6), torch.ones(9), torch.randn(9, 6), torch.zeros(6), torch.tensor(0)]
    wanted = [tensor.clone() for tensor in state]
    args = (torch.ones(9), torch.randn(9, 6), 0.9, 1e-5, False)
    ops.ema_commit_(*state, *args)
    reference.ema_commit_(*wanted, *args)
    torch.testing.assert_close(state, wanted)


def test_compiles_as_one_graph():
    args = arguments()
    compiled = torch.compile(
        lambda x: ops.quantize_forward(x, *args[1:])[0] * 2, fullgraph=True, backend="aot_eager"
    )
    x = args[0].nan_to_num(0.0)
    torch.testing.assert_close(compiled(x), 2 * ops.quantize_forward(x, *args[1:])[0])
