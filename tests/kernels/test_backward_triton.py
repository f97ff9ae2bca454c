"""The Triton gradient equals the reference."""

from __future__ import annotations

import pytest
import torch

from fq_toolkit.kernels import reference

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture
def backward(kernel_device):
    from fq_toolkit.kernels.backward_triton import quantize_backward

    def run(*args):
        return quantize_backward(*(tensor.to(kernel_device) for tensor in args)).cpu()

    return run


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "dim", "num_codes"),
    [((1, 1, 1), 1, 1), ((33, 1, 1), 5, 65), ((2, 3, 5), 48, 7), ((3, 2, 2), 130, 2)],
)
@pytest.mark.parametrize("upstream", ["same", "other strides", "broadcast", "none"])
def test_equals_the_reference(backward, strided, shape, dim, num_codes, dtype, upstream):
    number = shape[0] * shape[1] * shape[2]
    rows = torch.randn(number, dim).to(dtype)
    indices = torch.randint(-2, num_codes, (number,), dtype=torch.int32)
    rows[indices == -1] = float("nan")
    x = strided(rows, shape, ("nchw", "channels_last", "sliced")[dim % 3])
    grad = torch.randn_like(x)
    if upstream == "other strides":
        grad = strided(torch.randn(number, dim).to(dtype), shape, "sliced")
    elif upstream == "broadcast":
        grad = torch.ones(1, dtype=dtype).expand(x.shape)
    elif upstream == "none":
        grad = x.new_empty(0)
    args = (grad, torch.randn(shape[0]), x, torch.randn(num_codes, dim), indices)
    found = backward(*args)
    assert found.stride() == torch.empty_like(x).stride()
    assert found.dtype == dtype
    assert torch.equal(found, reference.quantize_backward(*args))


def test_rows_without_a_code_pass_the_gradient_on(backward):
    x, grad = torch.full((4, 3, 1, 1), float("inf")), torch.randn(4, 3, 1, 1)
    indices = torch.tensor([-1, -2, -1, -2], dtype=torch.int32)
    assert torch.equal(backward(grad, torch.ones(4), x, torch.randn(2, 3), indices), grad)


def test_no_rows(backward):
    x = torch.zeros(2, 3, 0, 4)
    assert (
        backward(x, torch.ones(2), x, torch.randn(2, 3), torch.zeros(0, dtype=torch.int32)).shape == x.shape
    )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_the_device_matches_and_repeats(backward, dtype):
    x, grad = (torch.randn(8, 200, 17, 32).to(dtype) for _ in range(2))
    indices = torch.randint(-2, 500, (8 * 17 * 32,), dtype=torch.int32)
    args = (grad, torch.randn(8), x, torch.randn(500, 200), indices)
    first = backward(*args)
    assert torch.equal(first, reference.quantize_backward(*args))
    for _ in range(20):
        assert torch.equal(first, backward(*args))
