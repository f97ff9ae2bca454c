"""The Triton commit equals the reference."""

from __future__ import annotations

import pytest
import torch

from fq_toolkit.kernels import reference
from fq_toolkit.kernels.launch import LaunchConfig


@pytest.fixture
def commit(kernel_device):
    from fq_toolkit.kernels.commit_triton import ema_commit_

    def run(state, *args, **kwargs):
        moved = [tensor.to(kernel_device, copy=True) for tensor in state]
        args = [value.to(kernel_device) if isinstance(value, torch.Tensor) else value for value in args]
        ema_commit_(*moved, *args, **kwargs)
        return [tensor.cpu() for tensor in moved]

    return run


def fresh_state(num_codes, dim):
    return [
        torch.randn(num_codes, dim),
        torch.rand(num_codes) * 2,
        torch.randn(num_codes, dim),
        torch.randn(dim),
        torch.tensor(3),
    ]


def assert_same(found, wanted):
    for one, other in zip(found[:-1], wanted[:-1], strict=True):
        torch.testing.assert_close(one, other, rtol=2e-6, atol=1e-7)
    assert torch.equal(found[-1], wanted[-1])


@pytest.mark.parametrize(("num_codes", "dim"), [(1, 1), (7, 130), (65, 48)])
@pytest.mark.parametrize("debias", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_equals_the_reference(commit, num_codes, dim, debias, decay):
    state = fresh_state(num_codes, dim)
    wanted = [tensor.clone() for tensor in state]
    for dtype in (torch.int64, torch.float32):
        counts = torch.randint(0, 4, (num_codes,)).to(dtype)
        counts[0] += 1
        args = (counts, torch.randn(num_codes, dim), decay, 1e-5, debias)
        state = commit(state, *args)
        reference.ema_commit_(*wanted, *args)
        assert_same(state, wanted)
    assert state[-1] == 5


def test_sums_that_are_not_finite(commit):
    state = fresh_state(5, 6)
    wanted = [tensor.clone() for tensor in state]
    sums = torch.randn(5, 6)
    sums[1, 2], sums[3, 4] = float("inf"), float("nan")
    args = (torch.ones(5), sums, 0.75, 1e-5, False)
    state = commit(state, *args)
    reference.ema_commit_(*wanted, *args)
    assert_same(state, wanted)
    assert all(torch.isfinite(tensor).all() for tensor in state[:-1])


def test_more_codes_than_one_scan(commit):
    state = fresh_state(1100, 3)
    wanted = [tensor.clone() for tensor in state]
    args = (torch.randint(0, 4, (1100,)), torch.randn(1100, 3), 0.9, 1e-5, True)
    reference.ema_commit_(*wanted, *args)
    assert_same(commit(state, *args, config=LaunchConfig(1, 256, 16, 4, 1)), wanted)


@pytest.mark.parametrize("debias", [False, True])
def test_an_empty_batch_changes_nothing(commit, debias):
    state = fresh_state(33, 5)
    state[0][3] = float("nan")
    after = commit(state, torch.zeros(33), torch.zeros(33, 5), 0.9, 1e-5, debias)
    for one, other in zip(state, after, strict=True):
        assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))


def test_tiles_do_not_matter(commit):
    state = fresh_state(50, 20)
    args = (torch.randint(0, 4, (50,)), torch.randn(50, 20), 0.9, 1e-5, True)
    results = [commit(state, *args, config=LaunchConfig(1, *block, 4, 1)) for block in ((4, 8), (64, 32))]
    assert_same(*results)


@pytest.mark.gpu
@pytest.mark.parametrize(("num_codes", "dim"), [(1024, 256), (16384, 64), (7, 1000)])
@pytest.mark.parametrize("debias", [False, True])
def test_on_the_device_matches_and_repeats(commit, num_codes, dim, debias):
    state = fresh_state(num_codes, dim)
    args = (torch.randint(0, 9, (num_codes,)), torch.randn(num_codes, dim), 0.9, 1e-5, debias)
    wanted = [tensor.clone() for tensor in state]
    reference.ema_commit_(*wanted, *args)
    first = commit(state, *args)
    assert_same(first, wanted)
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(first, commit(state, *args), strict=True))
