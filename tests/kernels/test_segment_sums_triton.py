"""Counts, sums and errors are complete, accurate to the last bits and the same every time."""

from __future__ import annotations

import pytest
import torch

from fq_toolkit.kernels.launch import LaunchConfig

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture
def segment_sums(kernel_device):
    from fq_toolkit.kernels.segment_sums_triton import segment_sums

    def run(x, indices, row_error, num_codes, with_sums=True, **kwargs):
        move = [tensor.to(kernel_device) for tensor in (x, indices, row_error)]
        return tuple(result.cpu() for result in segment_sums(*move, num_codes, with_sums, **kwargs))

    return run


def assert_same(result, x, indices, row_error, num_codes, tolerance=2**-22):
    rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    rows = rows.double() if x.dtype != torch.float64 else rows.float().double()
    valid = indices >= 0
    sums = torch.zeros(num_codes, x.shape[1], dtype=torch.float64)
    sums.index_put_((indices[valid].long(),), rows[valid], accumulate=True)
    size = torch.zeros_like(sums).index_put_((indices[valid].long(),), rows[valid].abs(), accumulate=True)
    sq_error, counts, found = result
    assert torch.equal(counts, torch.bincount(indices[valid].long(), minlength=num_codes))
    assert ((found.double() - sums).abs() <= tolerance * size).all()
    assert torch.equal(sq_error, row_error.double().view(x.shape[0], -1).sum(dim=1).float())


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "dim", "num_codes"),
    [((1, 1, 1), 1, 1), ((33, 1, 1), 5, 65), ((2, 3, 5), 48, 7), ((70, 2, 1), 33, 2), ((1, 5, 7), 65, 33)],
)
@pytest.mark.parametrize("splits", [None, 3])
def test_matches_float64(segment_sums, strided, shape, dim, num_codes, dtype, splits):
    number = shape[0] * shape[1] * shape[2]
    x = strided(torch.randn(number, dim).to(dtype), shape, ("nchw", "channels_last", "sliced")[dim % 3])
    indices = torch.randint(-2, num_codes, (number,), dtype=torch.int32)
    row_error = torch.rand(number)
    result = segment_sums(x, indices, row_error, num_codes, splits=splits)
    assert_same(result, x, indices, row_error, num_codes)


@pytest.mark.usefixtures("poison")
def test_more_rows_than_a_chunk_and_long_samples(segment_sums):
    x, row_error = torch.randn(1, 3, 1, 1100), torch.rand(1100)
    indices = (torch.arange(1100) % 41 - 1).int()
    config = LaunchConfig(64, 32, 16, 4, 1, "ieee")
    results = [segment_sums(x, indices, row_error, 40, splits=s, config=config) for s in (1, 2)]
    for result in results:
        assert_same(result, x, indices, row_error, 40)


def test_bad_rows_do_not_reach_the_sums(segment_sums):
    x = torch.full((20, 4, 1, 1), float("nan"))
    x[::2] = 1.0
    indices = torch.where(torch.arange(20) % 2 == 0, 3, -1).int()
    _, counts, sums = segment_sums(x, indices, torch.zeros(20), 5)
    assert counts.tolist() == [0, 0, 0, 10, 0]
    assert torch.equal(sums, torch.zeros(5, 4).index_fill_(0, torch.tensor([3]), 10.0))


def test_rounding_is_compensated_from_product_to_product(segment_sums):
    x = torch.ones(192, 1, 1, 1)
    x[:64], x[128:] = 2.0**24, -(2.0**24)
    for splits in (1, 3):
        _, _, sums = segment_sums(x, torch.zeros(192, dtype=torch.int32), torch.zeros(192), 1, splits=splits)
        assert sums.item() == 64.0


def test_counts_alone(segment_sums):
    x, indices = torch.randn(40, 3, 1, 1), torch.randint(-1, 6, (40,), dtype=torch.int32)
    sq_error, counts, sums = segment_sums(x, indices, torch.ones(40), 6, with_sums=False)
    assert sums.shape == (0, 3)
    assert counts.sum() == (indices >= 0).sum()
    assert torch.equal(sq_error, torch.ones(40))


def test_no_rows(segment_sums):
    empty = torch.zeros(0)
    sq_error, counts, sums = segment_sums(torch.zeros(2, 3, 0, 4), empty.int(), empty, 5)
    assert [t.abs().sum().item() for t in (sq_error, counts, sums)] == [0, 0, 0]
    assert (sq_error.shape, counts.shape, sums.shape) == ((2,), (5,), (5, 3))


def test_splits_cover_the_rows_and_bound_the_memory(kernel_device):
    from fq_toolkit.kernels.segment_sums_triton import split_rows

    for num_rows in (1, 1024, 4097, 32768, 524288, 1 << 33):
        for num_codes, dim in ((1, 1), (64, 256), (1024, 64), (16384, 256), (65536, 1024)):
            tiles = -(-num_codes // 64) * -(-dim // 64)
            splits, rows = split_rows(num_rows, num_codes, dim, tiles)
            assert (splits - 1) * rows < num_rows <= splits * rows
            assert splits == 1 or splits * num_codes * dim <= 1 << 21
            assert splits == 1 or num_rows >= 4096


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "dim", "num_codes"), [(20000, 256, 1024), (70000, 8, 300), (2000, 64, 5000)])
def test_on_the_device_matches_and_repeats(segment_sums, n, dim, num_codes, dtype):
    x, row_error = torch.randn(n, dim, 1, 1).to(dtype), torch.rand(n)
    indices = (torch.randn(n).abs() * num_codes / 3).int().clamp(max=num_codes - 1) - 1
    first = segment_sums(x, indices, row_error, num_codes)
    # Tensor cores cut up to 9 terms off at 2^-24 of the largest, four times for the 32 rows of a product.
    assert_same(first, x, indices, row_error, num_codes, tolerance=36 * 2**-24)
    for _ in range(20):
        again = segment_sums(x, indices, row_error, num_codes)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
