"""What every trainer inherits: state there and back, the check of the data, and the guard against NaN."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fq_toolkit.training.averaging import WeightAverage
from fq_toolkit.training.errors import CheckpointError
from fq_toolkit.training.sampling_order import ShuffledIndices
from fq_toolkit.training.storage.packing import pack, unpack
from fq_toolkit.training.task import LoopResult, TrainingTask, count_weights, load_optimizer


class Regression(TrainingTask):
    """Two layers and an average of them, with everything that a trainer can have."""

    trained_on = "the points"

    def __init__(self, fingerprint: str = "a") -> None:
        self.config = SimpleNamespace(data="points.csv")
        self.accelerator = SimpleNamespace(scaler=None, device=torch.device("cpu"), num_processes=2)
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
        self.average = WeightAverage(self.network, decay=0.9)
        self.optimizer = torch.optim.AdamW(self.network.parameters())
        self.order = ShuffledIndices(16, 4, seed=1)
        self.penalty = 0.0
        self._fingerprint = fingerprint

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def modules(self) -> dict[str, Any]:
        return {"network": self.network, "average": self.average}

    def optimizers(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer}

    def orders(self) -> dict[str, Any]:
        return {"order": self.order}

    def extra_state(self) -> dict[str, Any]:
        return {"penalty": self.penalty}

    def load_extra_state(self, state: Any) -> None:
        self.penalty = state["penalty"]

    def step(self, step: int) -> dict[str, Tensor]:
        rows = self.order.next().float()
        loss = self.network(torch.stack([rows, rows**2, rows * 0 + self.penalty], dim=1)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.average.update()
        self.penalty += 0.5
        return {"loss/points": loss.detach()}

    def evaluate(self) -> dict[str, float]:
        return {}

    def summary(self) -> str:
        return self.where()

    def columns(self) -> list[str]:
        return ["seconds", "loss/points"]

    def measured_on(self) -> dict[str, Any]:
        return {}

    def finish(self, run: Any, result: LoopResult, *, complete: bool) -> None:
        pass


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    tensors, rest = pack(state)
    return unpack({name: value.clone() for name, value in tensors.items()}, rest)


def test_training_goes_on_from_a_state_as_if_nothing_had_happened() -> None:
    whole, first, second = Regression(), Regression(), Regression()
    losses = [float(whole.step(i)["loss/points"]) for i in range(12)]
    for i in range(7):
        first.step(i)
    second.load_state(through_a_file(first.state()))
    assert [float(second.step(i)["loss/points"]) for i in range(7, 12)] == losses[7:]
    assert second.average.updates == whole.average.updates


def test_other_data_are_refused_by_name_and_nothing_is_loaded() -> None:
    first, other = Regression("a"), Regression("b")
    first.step(0)
    before = [weight.clone() for weight in other.network.parameters()]
    with pytest.raises(CheckpointError, match=r"the points of points\.csv are not those"):
        other.load_state(first.state())
    assert all(torch.equal(a, b) for a, b in zip(before, other.network.parameters(), strict=True))


def test_a_state_from_before_fingerprints_passes() -> None:
    first = Regression()
    state = first.state()
    del state["data"]
    Regression("b").load_state(state)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_found_in_any_network(bad: float) -> None:
    for layer in (0, 1):
        task = Regression()
        assert task.is_finite()
        with torch.no_grad():
            task.network[layer].weight.view(-1)[-1] = bad
        assert not task.is_finite()


def test_summaries_name_threads_and_processes() -> None:
    assert Regression().summary() == f"cpu, {torch.get_num_threads()} threads, 2 processes"
    assert count_weights(Regression().network, nn.Linear(2, 2)) == 3 * 4 + 4 + 4 + 1 + 6


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
