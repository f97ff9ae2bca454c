"""One step for every family: losses, halves, accumulation, penalties, dictionaries."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn import functional

from fq_toolkit import FeatureQuantizer
from fq_toolkit.fqgan.data.datasets import ImageDataset
from fq_toolkit.fqgan.gan.config import PRESETS, FQGANConfig
from fq_toolkit.fqgan.gan.losses import (
    path_lengths,
    r1_penalty,
)
from fq_toolkit.fqgan.gan.networks.residual import ImageShape
from fq_toolkit.fqgan.gan.networks.stylegan2 import build_stylegan2
from fq_toolkit.fqgan.gan.training import GANTask
from fq_toolkit.training.errors import ConfigError

BASE = FQGANConfig(fq="regularize", num_codes=8, latent_size=8, batch_size=8, device="cpu", fq_init="normal")

FAMILIES = {
    "residual": dataclasses.replace(BASE, channels=2),
    "biggan": dataclasses.replace(BASE, family="biggan", channels=2, attention=16, shared_size=4),
    "stylegan2": dataclasses.replace(
        BASE, family="stylegan2", channels=4, fq_layers=(-2, -1), style_mixing=0.0
    ),
}


@pytest.fixture(params=list(FAMILIES))
def config(request: pytest.FixtureRequest) -> FQGANConfig:
    return FAMILIES[request.param]


def make(config: FQGANConfig, classes: int = 3, accelerator: Accelerator | None = None) -> GANTask:
    draws = torch.Generator().manual_seed(5)
    images = torch.rand(64, 1, 32, 32, generator=draws) * 2 - 1
    labels = torch.arange(64) % classes
    data = ImageDataset("noise", images, labels, classes, "none")
    return GANTask(config, data, accelerator or Accelerator(cpu=True))


def hold_still(model: nn.Module) -> None:
    """Let batch norm and spectral norm use what they have: they look at each forward, not at each update."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) or type(module).__name__ == "SpectralNorm":
            module.eval()


def in_doubles(gan: GANTask) -> None:
    """Compute in float64, where the order of sums makes no visible difference."""
    for model in (gan.generator, gan.discriminator):
        model.double()
        hold_still(model)
    gan.images = gan.images.double()
    for optimizer in (gan.g_optimizer, gan.d_optimizer):
        optimizer.state.clear()


@pytest.mark.parametrize("fq", ["none", "regularize"])
def test_four_times_eight_is_once_thirty_two(
    config: FQGANConfig, fq: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both updates, the penalties and the dictionaries: accumulation equals the big batch."""
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *size, **options: randn(*size, **options).double())
    monkeypatch.setattr(torch, "randn_like", lambda x: torch.ones_like(x))  # drawn in every forward
    extra = {"r1_weight": 1.0, "fq": fq, "fq_update_per": "update", "fq_update_in_generator_step": True}
    results = []
    for batch, accumulate in ((32, 1), (8, 4)):
        gan = make(dataclasses.replace(config, batch_size=batch, accumulate=accumulate, **extra))
        in_doubles(gan)
        values = gan.step(0)
        results.append((gan, values))
    (big, big_values), (small, small_values) = results
    assert big_values.keys() == small_values.keys()
    for name, value in big_values.items():
        torch.testing.assert_close(small_values[name].double(), value.double(), rtol=1e-5, atol=1e-7)
    for mine, other in ((big.generator, small.generator), (big.discriminator, small.discriminator)):
        theirs = other.state_dict()
        for name, value in mine.state_dict().items():
            if "running" not in name:  # a mean over forwards, not over samples
                torch.testing.assert_close(theirs[name], value, rtol=1e-5, atol=1e-6, msg=name)
    for mine, other in ((big.g_optimizer, small.g_optimizer), (big.d_optimizer, small.d_optimizer)):
        moments = [optimizer.state_dict()["state"] for optimizer in (mine, other)]
        for key, moment in moments[
            0
        ].items():  # Adam's steps hide the scale of the gradients, its moments do not
            torch.testing.assert_close(
                moments[1][key]["exp_avg_sq"], moment["exp_avg_sq"], rtol=1e-4, atol=1e-9
            )
    counts = [[int(layer.num_updates) for layer in gan.quantizers] for gan, _ in results]
    assert counts[0] == counts[1] == [2] * len(big.quantizers)  # D's update and G's


def test_dictionaries_move_in_every_forward_as_released(config: FQGANConfig) -> None:
    gan = make(dataclasses.replace(config, batch_size=4, accumulate=2, r1_weight=1.0))
    gan.step(0)
    assert {int(layer.num_updates) for layer in gan.quantizers} == {2}  # neither G's step nor R1 moves them
    moving = dataclasses.replace(config, batch_size=4, accumulate=2, fq_update_in_generator_step=True)
    gan = make(moving)
    gan.step(0)
    assert {int(layer.num_updates) for layer in gan.quantizers} == {4}


def test_fake_and_real_halves(config: FQGANConfig) -> None:
    """D's loss takes each half for what it is; G's takes fakes for what it wants."""
    gan = make(dataclasses.replace(config, fq="none"))
    seen: list[tuple[Tensor, Tensor, int]] = []
    weight = next(gan.discriminator.parameters())

    class Mean(nn.Module):
        def forward(self, images: Tensor, labels: Tensor, parts: int = 1) -> Tensor:
            seen.append((images, labels, parts))
            return images.mean((1, 2, 3)) + 0 * weight.sum()

    class Constant(nn.Module):
        def forward(self, z: Tensor, labels: Tensor) -> Tensor:
            return torch.full((len(z), 1, 32, 32), -3.0) + 0 * next(generator.parameters()).sum()

    generator = gan.generator
    gan.wrapped_d = gan.discriminator = Mean()
    gan.wrapped_g = gan.generator = Constant()
    values = gan._discriminator_step()
    images, labels, parts = seen[0]
    ((real, real_labels),) = gan.real
    assert parts == 2
    assert torch.equal(images[:8], torch.full((8, 1, 32, 32), -3.0))
    assert torch.equal(images[8:], real)
    assert torch.equal(labels[8:], real_labels)
    scores = real.mean((1, 2, 3))
    torch.testing.assert_close(values["score/fake"], torch.tensor(-3.0))
    torch.testing.assert_close(values["score/real"], scores.mean())
    if config.family == "stylegan2":
        expected = functional.softplus(-scores).mean() + functional.softplus(torch.tensor(-3.0))
        wanted = functional.softplus(torch.tensor(3.0))
    else:
        expected = (1 - scores).clamp(min=0).mean()  # 1 + (-3) is below 0: nothing to pay for the fakes
        wanted = torch.tensor(3.0)
    torch.testing.assert_close(values["loss/d"], expected)
    torch.testing.assert_close(gan._generator_step()["loss/g"], wanted)


def test_flips_come_with_the_random_state(config: FQGANConfig) -> None:
    plain, flipped = make(config), make(dataclasses.replace(config, flip=True))
    rows = torch.arange(64)
    images, labels = flipped._real(rows)
    original, _ = plain._real(rows)
    same = (images == original).flatten(1).all(1)
    mirrored = (images == original.flip(3)).flatten(1).all(1)
    assert torch.equal(same, ~mirrored)
    assert 10 < int(mirrored.sum()) < 54
    assert torch.equal(labels, plain.labels)


@pytest.mark.parametrize("fq", ["none", "regularize", "straight_through"])
def test_r1_against_autograd_sample_by_sample(config: FQGANConfig, fq: str) -> None:
    gan = make(dataclasses.replace(config, fq=fq))
    in_doubles(gan)
    discriminator = gan.discriminator.eval()
    images, labels = gan.images[:3], gan.labels[:3]
    penalty = r1_penalty(discriminator, images, labels)
    if config.family == "stylegan2":  # the minibatch deviation couples samples: one gradient of the sum
        x = images.clone().requires_grad_()
        discriminator(x, labels).sum().backward()
        expected = x.grad.square().sum() / 3
    else:
        expected = torch.zeros((), dtype=torch.double)
        for image, label in zip(images, labels, strict=True):
            x = image[None].clone().requires_grad_()
            discriminator(x, label[None]).backward()
            expected += x.grad.square().sum() / 3
    torch.testing.assert_close(penalty, expected)
    penalty.backward()
    assert all(weight.grad is not None for weight in discriminator.parameters())


def test_path_lengths_against_the_jacobian(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(FAMILIES["stylegan2"], fq="none")
    generator, _ = build_stylegan2(config, ImageShape(1, 8, 8, 2), None)
    generator.double().eval()
    z, labels = torch.randn(2, 8, dtype=torch.double), torch.tensor([0, 1])
    y = torch.randn(2, 1, 8, 8, dtype=torch.double)
    monkeypatch.setattr(torch, "randn_like", lambda x: y if x.shape == y.shape else torch.zeros_like(x))
    lengths = path_lengths(generator, z, labels)
    for b in range(2):
        styles = generator.styles(z[b : b + 1], labels[b : b + 1]).detach()
        jacobian = torch.autograd.functional.jacobian(generator.synthesize, styles)  # (1, 1, 8, 8, 1, L, 8)
        product = torch.einsum("hw,hwls->ls", y[b, 0] / 8, jacobian[0, 0, :, :, 0])
        torch.testing.assert_close(lengths[b].detach(), product.square().sum(1).mean().sqrt())
    lengths.sum().backward()
    assert all(weight.grad is not None for weight in generator.parameters())


def counted(gan: GANTask, name: str) -> list[int]:
    """Count the calls of a method."""
    calls: list[int] = []
    method: Callable[..., Any] = getattr(gan, name)

    def count(*arguments: Any) -> Any:
        calls.append(1)
        return method(*arguments)

    setattr(gan, name, count)
    return calls


def test_penalties_every_few_steps() -> None:
    config = dataclasses.replace(
        FAMILIES["stylegan2"], r1_weight=10.0, r1_every=3, path_weight=2.0, path_every=2, batch_size=4
    )
    gan = make(config)
    r1, path = counted(gan, "_r1_step"), counted(gan, "_path_step")
    seen = [{name: float(value) for name, value in gan.step(step).items()} for step in range(4)]
    assert (len(r1), len(path)) == (2, 2)  # in steps 0 and 3; 0 and 2
    assert seen[0]["penalty/r1"] == seen[1]["penalty/r1"] == seen[2]["penalty/r1"] != seen[3]["penalty/r1"]
    assert seen[0]["penalty/path"] == seen[1]["penalty/path"] != seen[2]["penalty/path"]
    assert {tuple(values) for values in seen} == {tuple(seen[0])}
    assert float(gan.path_penalty.average) > 0


def test_adam_makes_up_for_the_extra_updates() -> None:
    gan = make(dataclasses.replace(FAMILIES["stylegan2"], betas=(0.5, 0.99), r1_weight=1.0, path_weight=1.0))
    for optimizer, every, lr in (
        (gan.d_optimizer, 16, gan.config.d_lr),
        (gan.g_optimizer, 4, gan.config.g_lr),
    ):
        share = every / (every + 1)
        group = optimizer.param_groups[0]
        assert group["lr"] == pytest.approx(lr * share)
        assert group["betas"] == pytest.approx((0.5**share, 0.99**share))
    plain = make(FAMILIES["stylegan2"]).d_optimizer.param_groups[0]
    assert (plain["lr"], plain["betas"]) == (4e-4, (0.0, 0.999))


@pytest.fixture
def bfloat16() -> Iterator[Accelerator]:
    """Accelerate keeps the first precision of a process for all that follow."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True, mixed_precision="bf16")
    AcceleratorState._reset_state(reset_partial_state=True)


def test_penalties_under_mixed_precision(config: FQGANConfig, bfloat16: Accelerator) -> None:
    """Accelerate's wrapper converts what networks return; the penalties still reach the weights."""
    path = 2.0 if config.family == "stylegan2" else 0.0
    changed = dataclasses.replace(config, r1_weight=1.0, path_weight=path, batch_size=4, accumulate=2)
    gan = make(changed, accelerator=bfloat16)
    values = gan.step(0)
    assert all(bool(value.isfinite()) for value in values.values())
    assert all(float(value) > 0 for name, value in values.items() if name.startswith("penalty"))
    assert next(gan.generator.parameters()).dtype == torch.float32


def test_the_average_covers_the_whole_state(config: FQGANConfig) -> None:
    gan = make(config)
    gan.step(0)
    start, now = make(config).generator.state_dict(), gan.generator.state_dict()
    for name, value in gan.average.model.state_dict().items():
        if value.is_floating_point():  # d_1 = 2 / 11
            torch.testing.assert_close(value, torch.lerp(now[name], start[name], 2 / 11), msg=name)


# The released values, line by line: layers, K, commitment, decay, batch, forwards, D steps, rates of G and D.
RELEASED = {
    "biggan-cifar10": ((0, 1, 2, 3), 1024, 1.0, 0.8, 64, 1, 4, 2e-4, 2e-4),
    "biggan-cifar100": ((0, 1, 2, 3), 64, 10.0, 0.9, 64, 1, 4, 2e-4, 2e-4),
    "biggan-imagenet64": ((2,), 1024, 0.5, 0.7, 128, 4, 1, 1e-4, 4e-4),
    "biggan-imagenet128": ((0, 1, 2, 3), 1024, 15.0, 0.8, 256, 4, 1, 1e-4, 4e-4),
    "stylegan2-ffhq": ((-3, -2), 128, 0.25, 0.8, 32, 1, 1, 2e-3, 2e-3),
}


@pytest.mark.parametrize("name", list(RELEASED))
def test_presets_have_the_released_values(name: str) -> None:
    c = PRESETS[name]
    values = (c.fq_layers, c.num_codes, c.commitment, c.decay, c.batch_size, c.accumulate, c.d_steps)
    assert (*values, c.g_lr, c.d_lr) == RELEASED[name]
    assert (c.fq, c.fq_init, c.fq_update_in_generator_step, c.ema_decay) == (
        "regularize",
        "normal",
        True,
        0.9999,
    )
    tiny = PRESETS[f"{name}-tiny"]
    assert (tiny.family, tiny.fq_layers, tiny.commitment, tiny.decay) == (
        c.family, c.fq_layers, c.commitment, c.decay
    )  # fmt: skip
    assert (c.data, tiny.data, tiny.preset) == ("", "digits", f"{name}-tiny")


@pytest.mark.parametrize("name", list(RELEASED))
def test_tiny_presets_take_a_step(name: str) -> None:
    """With two samples a forward, so that the test is fast; the quantizers are where the table says."""
    config = dataclasses.replace(PRESETS[f"{name}-tiny"], batch_size=2, accumulate=1, d_steps=1, device="cpu")
    size = config.image_size
    data = ImageDataset("noise", torch.rand(4, 1, size, size) * 2 - 1, torch.arange(4) % 2, 2, "none")
    gan = GANTask(config, data, Accelerator(cpu=True))
    values = gan.step(0)
    assert all(bool(value.isfinite()) for value in values.values())
    assert all(isinstance(layer, FeatureQuantizer) for layer in gan.quantizers)
    assert len(gan.quantizers) == len(config.fq_layers)


def test_a_part_of_the_images_is_the_same_all_along_and_another_for_another_seed() -> None:
    few = dataclasses.replace(FAMILIES["residual"], train_images=16, fq="none")
    seen = []
    for seed in (0, 0, 1):
        gan = make(dataclasses.replace(few, seed=seed))
        seen.append({int(row) for _ in range(6) for part in gan._split(gan.order.next()) for row in part})
    assert [len(rows) for rows in seen] == [16, 16, 16]
    assert seen[0] == seen[1] != seen[2]


def test_all_images_are_used_unless_fewer_are_asked_for() -> None:
    gan = make(dataclasses.replace(FAMILIES["residual"], fq="none"))
    assert {int(row) for _ in range(8) for row in gan._split(gan.order.next())[0]} == set(range(64))


def test_more_images_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match="train_images is 65; there are 64"):
        make(dataclasses.replace(FAMILIES["residual"], train_images=65))
