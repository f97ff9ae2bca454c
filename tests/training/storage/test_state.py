"""Random state, data order, weight averages, batch-norm statistics, optimizer state."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fq_toolkit.training.averaging import WeightAverage, recalibrate_batchnorm
from fq_toolkit.training.sampling_order import ShuffledIndices
from fq_toolkit.training.seeding import isolated_rng, rank_seed, rng_state, seed_everything, set_rng_state
from fq_toolkit.training.storage.packing import pack, unpack
from fq_toolkit.training.task import load_optimizer


def draw() -> tuple:
    return random.random(), float(np.random.randn()), float(torch.randn(())), random.gauss(0, 1)


@pytest.mark.parametrize("before", [0, 1, 3])
def test_random_state_goes_on_after_a_round_trip(before: int) -> None:
    seed_everything(before)
    for _ in range(before):  # an odd number of Gaussians leaves one in reserve
        draw()
    saved = unpack(*pack(rng_state()))
    expected = [draw() for _ in range(3)]
    seed_everything(99)
    set_rng_state(saved)
    assert [draw() for _ in range(3)] == expected


def test_isolated_block_leaves_the_outer_state_and_repeats() -> None:
    seed_everything(1)
    expected = draw()
    seed_everything(1)
    with isolated_rng(5):
        first = draw()
    assert draw() == expected
    with isolated_rng(5):
        assert draw() == first


def test_ranks_have_their_own_seeds() -> None:
    seeds = {rank_seed(seed, rank) for seed in range(20) for rank in range(20)}
    assert len(seeds) == 400


@given(
    size=st.integers(4, 60),
    batch=st.integers(1, 4),
    taken=st.integers(0, 40),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_order_is_a_permutation_and_continues(size: int, batch: int, taken: int, seed: int) -> None:
    order = ShuffledIndices(size, batch, seed=seed)
    per_epoch = size // batch
    epoch = torch.cat([order.next() for _ in range(per_epoch)])
    assert len(epoch.unique()) == len(epoch) == per_epoch * batch
    for _ in range(taken):
        order.next()
    other = ShuffledIndices(size, batch, seed=seed)
    other.load_state_dict(order.state_dict())
    for _ in range(5):
        assert torch.equal(order.next(), other.next())


@given(world=st.integers(1, 4), seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_processes_share_out_what_one_would_take(world: int, seed: int) -> None:
    ranks = [ShuffledIndices(50, 3, seed=seed, rank=rank, world=world) for rank in range(world)]
    alone = ShuffledIndices(50, 3 * world, seed=seed)
    for _ in range(20):
        assert torch.equal(torch.cat([order.next() for order in ranks]), alone.next())


def test_too_few_rows() -> None:
    with pytest.raises(ValueError, match="7 rows do not fill a batch of 4 for 2"):
        ShuffledIndices(7, 4, seed=0, world=2)


def test_average_is_the_recursion_with_a_ramp() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = WeightAverage(model, decay=0.5)
    expected = {name: value.clone().double() for name, value in model.state_dict().items()}
    for t in range(1, 30):
        with torch.no_grad():
            for weight in model.parameters():
                weight.normal_()
            model(torch.randn(4, 3))  # moves the running statistics
        average.update()
        decay = min(0.5, (1 + t) / (10 + t))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value.double()
    for name, value in average.model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert int(average.model[1].num_batches_tracked) == 29
    assert not any(weight.requires_grad for weight in average.model.parameters())
    assert not average.model.training


def test_average_survives_a_round_trip() -> None:
    model = nn.Linear(3, 2)
    average, other = WeightAverage(model, decay=0.9), WeightAverage(model, decay=0.9)
    with torch.no_grad():
        model.weight.normal_()
    average.update()
    other.load_state_dict(unpack(*pack(average.state_dict())))
    average.update()
    other.update()
    assert torch.equal(average.model.weight, other.model.weight)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0])
def test_average_refuses_a_wrong_decay(decay: float) -> None:
    with pytest.raises(ValueError, match="expected 0 <= decay < 1"):
        WeightAverage(nn.Linear(1, 1), decay=decay)


def test_recalibration_is_the_mean_over_batches() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, momentum=0.3)).eval()
    batches = [torch.randn(8, 3) * 2 + 5 for _ in range(4)]
    source = iter(batches)
    recalibrate_batchnorm(model, lambda: model(next(source)), batches=4)
    torch.testing.assert_close(model[0].running_mean, torch.stack(batches).mean((0, 1)))
    torch.testing.assert_close(model[0].running_var, torch.stack([b.var(0) for b in batches]).mean(0))
    assert [norm.momentum for norm in model] == [0.1, 0.3]
    assert not model.training


def test_recalibration_restores_the_model_after_an_error() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3)).eval()
    with pytest.raises(ValueError, match="more than 1 value"):
        recalibrate_batchnorm(model, lambda: model(torch.ones(1, 3)), batches=1)
    assert model[0].momentum == 0.1
    assert not model.training


@pytest.mark.parametrize("fused", [False, True])
def test_optimizer_goes_on_bit_by_bit_in_channels_last(fused: bool) -> None:
    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
        return model, torch.optim.Adam(model.parameters(), lr=0.1, fused=fused)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()

    model, optimizer = make()
    step(model, optimizer, 1)
    saved = unpack(*pack({"model": dict(model.state_dict()), "optimizer": optimizer.state_dict()}))
    step(model, optimizer, 2)
    other, other_optimizer = make()
    other.load_state_dict(saved["model"])
    load_optimizer(other_optimizer, saved["optimizer"])
    moments = other_optimizer.state[other.weight]
    assert moments["exp_avg"].stride() == other.weight.stride()
    step(other, other_optimizer, 2)
    assert torch.equal(model.weight, other.weight)
    assert torch.equal(model.bias, other.bias)
