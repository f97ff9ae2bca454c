"""One step of U-GAT-IT from several forwards: the gradient of the big batch, and when dictionaries move."""

import dataclasses
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from fq_toolkit.fqgan.data.unpaired import UnpairedDataset, loading_size
from fq_toolkit.fqgan.ugatit import training as ugatit_training
from fq_toolkit.fqgan.ugatit.config import UGATITConfig
from fq_toolkit.fqgan.ugatit.training import UGATITTask
from fq_toolkit.training.errors import ConfigError
from tests.fqgan.ugatit.small import TINY

BASE = dataclasses.replace(TINY, fq_warmup=0, fq_init="normal")


def noise(count_a: int = 16, count_b: int = 19) -> UnpairedDataset:
    draws = torch.Generator().manual_seed(5)
    side = loading_size(BASE.image_size)
    a, b = (torch.rand(count, 1, side, side, generator=draws) * 2 - 1 for count in (count_a, count_b))
    return UnpairedDataset("noise", a, b, a[:4], b[:4], "noise")


def make(config: UGATITConfig, data: UnpairedDataset | None = None) -> UGATITTask:
    return UGATITTask(config, data or noise(), Accelerator(cpu=True))


def in_doubles(task: UGATITTask) -> None:
    """Compute in float64; spectral norm uses what it has, as it looks at each forward, not at each update."""
    for model in (task.translators, task.critics):
        model.double()
        for module in model.modules():
            if type(module).__name__ == "SpectralNorm":
                module.eval()
    task.train_a, task.train_b = task.train_a.double(), task.train_b.double()  # type: ignore[union-attr]


def gradients(task: UGATITTask) -> dict[str, Tensor]:
    networks = {"g": task.translators, "d": task.critics}
    return {
        f"{key}/{name}": weight.grad
        for key, network in networks.items()
        for name, weight in network.named_parameters()
        if weight.grad is not None
    }


@pytest.mark.parametrize(
    ("fq", "warmup"), [("none", 0), ("regularize", 0), ("straight_through", 2), ("straight_through", 0)]
)
def test_four_times_two_is_once_eight(fq: str, warmup: int) -> None:
    """Gradients of D and G, logged values and dictionaries: accumulation equals the big batch.

    Straight through at half the strength, and at the full one, where a single code everywhere makes the map
    that attention pools equal everywhere.
    """
    extra: dict[str, Any] = {"fq": fq, "fq_update_per": "update", "fq_update_in_generator_step": True}
    extra["fq_warmup"] = warmup
    results = []
    for batch, accumulate in ((8, 1), (2, 4)):
        task = make(dataclasses.replace(BASE, batch_size=batch, accumulate=accumulate, **extra))
        in_doubles(task)
        results.append((task, task.step(1)))
    (big, big_values), (small, small_values) = results
    assert big_values.keys() == small_values.keys()
    for name, value in big_values.items():
        # Dictionaries are float32, and straight through they are in all that comes after.
        rounded = name.startswith("commitment") or fq == "straight_through"
        precision = 1e-6 if rounded else 1e-12
        torch.testing.assert_close(small_values[name].double(), value.double(), rtol=precision, atol=0)
    expected, found = gradients(big), gradients(small)
    assert {name.partition("/")[0] for name in expected} == {"g", "d"}
    assert expected.keys() == found.keys()
    precision = 1e-12 if fq == "none" else 1e-7
    floor = precision * max(float(value.norm()) for value in expected.values())
    for name, value in expected.items():
        assert float((found[name] - value).norm()) <= precision * float(value.norm()) + 1e-3 * floor, name
    for name, layer in big.quantizers.items():
        torch.testing.assert_close(small.quantizers[name].codebook, layer.codebook, rtol=1e-5, atol=1e-6)
        assert int(small.quantizers[name].num_updates) == int(layer.num_updates) == 2  # D's update and G's


def test_one_gradient_would_not_do() -> None:
    """The forwards of an update see different images: none of them alone has its gradient."""
    a, b = (make(dataclasses.replace(BASE, accumulate=count)) for count in (1, 2))
    for task in (a, b):
        task.step(0)
    assert not all(torch.equal(value, gradients(b)[name]) for name, value in gradients(a).items())


@pytest.mark.parametrize(("per", "moves"), [("micro_batch", 3), ("update", 1)])
def test_dictionaries_move_as_often_as_asked(per: str, moves: int) -> None:
    config = dataclasses.replace(BASE, accumulate=3, fq_update_per=per)  # type: ignore[arg-type]
    task = make(config)
    task.step(0)
    assert {int(layer.num_updates) for layer in task.quantizers.values()} == {moves}  # G's step moves none
    task = make(dataclasses.replace(config, fq_update_in_generator_step=True))
    task.step(0)
    assert {int(layer.num_updates) for layer in task.quantizers.values()} == {2 * moves}


def test_a_step_looks_at_accumulate_times_batch_images_of_each_domain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr(ugatit_training, "jitter", lambda images, _: seen.append(images) or images)
    task = make(dataclasses.replace(BASE, accumulate=4))
    batches = task._batches()
    assert [len(images) for images in seen] == [8, 8]
    assert [(len(a), len(b)) for a, b in batches] == [(2, 2)] * 4
    assert torch.equal(torch.cat([a for a, _ in batches]), seen[0])
    assert torch.equal(torch.cat([b for _, b in batches]), seen[1])


def test_a_domain_with_fewer_images_than_an_update_takes() -> None:
    config = dataclasses.replace(BASE, accumulate=4)
    make(config, noise(8, 8))
    with pytest.raises(
        ConfigError, match=r"domain B has 7 training images; expected .* batch_size 2 x accumulate 4"
    ):
        make(config, noise(8, 7))
    with pytest.raises(ConfigError, match="accumulate is 0; expected at least 1"):
        dataclasses.replace(BASE, accumulate=0)


def test_strength_warms_up() -> None:
    for warmup, strengths in ((0, [1.0, 1.0]), (4, [0.0, 0.25])):
        task = make(dataclasses.replace(BASE, fq="straight_through", fq_warmup=warmup))
        for step, strength in enumerate(strengths):
            task.step(step)
            assert {layer.strength for layer in task.quantizers.values()} == {strength}
