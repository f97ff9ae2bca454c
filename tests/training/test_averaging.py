"""Averages of weights, and statistics of batch normalization for them."""

import pytest
import torch
from torch import nn

from fq_toolkit.training.averaging import WeightAverage, recalibrate_batchnorm
from fq_toolkit.training.storage.packing import pack, unpack


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
