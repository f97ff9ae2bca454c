"""U-GAT-IT: its layers against numpy, its networks against published sizes, its training, its commands."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from fq_toolkit.fqgan.data import unpaired
from fq_toolkit.fqgan.data.unpaired import load_unpaired
from fq_toolkit.fqgan.ugatit.config import PRESETS, UGATITConfig, preset
from fq_toolkit.fqgan.ugatit.layers import (
    LIN,
    AdaLIN,
    ClassActivationMap,
    clip_rho,
    layer_instance_norm,
    shared_maximum,
)
from fq_toolkit.fqgan.ugatit.losses import (
    adversarial_loss,
    attention_loss,
    critic_loss,
    cycle_loss,
    identity_loss,
)
from fq_toolkit.fqgan.ugatit.networks import Judgement, Round, Translation, build_networks
from fq_toolkit.fqgan.ugatit.training import UGATIT_TRAINER, UGATITTask, learning_rate
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.reporting.metrics_log import read_metrics
from fq_toolkit.training.session import train
from tests.fqgan.ugatit.small import TINY


@pytest.fixture(scope="module", autouse=True)
def few_digits() -> Any:
    patch = pytest.MonkeyPatch()
    whole = unpaired.load_digits()
    few = whole._replace(images=whole.images[:200], labels=whole.labels[:200])
    patch.setattr(unpaired, "load_digits", lambda: few)
    yield
    patch.undo()


@given(seed=st.integers(0, 10**6), channels=st.integers(1, 5), rho=st.sampled_from([0.0, 0.3, 1.0]))
@settings(max_examples=25, deadline=None)
def test_adalin_is_its_equation(seed: int, channels: int, rho: float) -> None:
    random = np.random.default_rng(seed)
    x, gamma, beta = random.normal(2, 3, (2, channels, 4, 3)), *random.normal(size=(2, 2, channels))
    share = np.full(channels, rho)
    by_instance = (x - x.mean((2, 3), keepdims=True)) / np.sqrt(x.var((2, 3), keepdims=True) + 1e-5)
    by_layer = (x - x.mean((1, 2, 3), keepdims=True)) / np.sqrt(x.var((1, 2, 3), keepdims=True) + 1e-5)
    mixed = share[:, None, None] * by_instance + (1 - share[:, None, None]) * by_layer
    expected = gamma[:, :, None, None] * mixed + beta[:, :, None, None]

    layer = AdaLIN(channels).double()
    layer.rho.data = torch.from_numpy(share)
    found = layer(*map(torch.from_numpy, (x, gamma, beta)))
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-9, atol=1e-9)
    plain = LIN(channels).double()
    plain.rho.data, plain.gamma.data, plain.beta.data = map(torch.from_numpy, (share, gamma[0], beta[0]))
    found = plain(torch.from_numpy(x))
    np.testing.assert_allclose(
        found.detach().numpy(), gamma[0][:, None, None] * mixed + beta[0][:, None, None], rtol=1e-9, atol=1e-9
    )


def test_rho_stays_between_instance_and_layer() -> None:
    model = nn.Sequential(AdaLIN(3), LIN(3))
    assert model[0].rho.tolist() == pytest.approx([0.9] * 3)
    assert model[1].rho.tolist() == [0.0] * 3
    for layer in model:
        layer.rho.data = torch.tensor([-0.5, 0.25, 1.5])
    clip_rho(model)
    assert [layer.rho.tolist() for layer in model] == [[0.0, 0.25, 1.0]] * 2
    assert model[0].rho.requires_grad
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(layer_instance_norm(x, torch.ones(3)), nn.functional.instance_norm(x))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_attention_is_its_equation(seed: int) -> None:
    torch.manual_seed(seed)
    layer = ClassActivationMap(3, nn.ReLU()).double()
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    found = layer(x)
    average, maximum, mix, bias = (
        weight.detach().numpy()
        for weight in (layer.average.weight, layer.maximum.weight, layer.mix.weight, layer.mix.bias)
    )
    a = x.numpy()
    logits = np.stack([a.mean((2, 3)) @ average[0], a.max((2, 3)) @ maximum[0]], axis=1)
    weighted = np.concatenate([a * average[0][:, None, None], a * maximum[0][:, None, None]], axis=1)
    mixed = np.einsum("oc,bchw->bohw", mix[:, :, 0, 0], weighted) + bias[:, None, None]
    np.testing.assert_allclose(found.logits.detach().numpy(), logits, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.features.detach().numpy(), mixed.clip(0), rtol=1e-10, atol=1e-12)


@given(
    seed=st.integers(0, 10**6),
    values=st.integers(1, 40),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=25, deadline=None)
def test_maxima_that_rounding_set_apart_share_the_gradient(
    seed: int, values: int, dtype: torch.dtype
) -> None:
    """The gradient of exact ties, whatever their last bits are; of the values only the last bits move."""
    draws = torch.Generator().manual_seed(seed)
    x = torch.randint(-values, values + 1, (2, 3, 4, 5), generator=draws).to(dtype)
    expected = x.clone().requires_grad_()
    expected.amax(dim=(2, 3)).square().sum().backward()  # amax shares it, when ties are exact
    noise = 16 * torch.finfo(dtype).eps * x.abs().amax(dim=(1, 2, 3), keepdim=True)
    found = (x + noise * (torch.rand(x.shape, generator=draws) - 0.5)).requires_grad_()
    pooled = shared_maximum(found)
    pooled.square().sum().backward()
    assert pooled.shape == (2, 3)
    assert bool(((pooled - found.amax(dim=(2, 3))).abs() <= noise[:, :, 0, 0]).all())
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-5, atol=1e-5)


@given(seed=st.integers(0, 10**6), dtype=st.sampled_from([torch.bfloat16, torch.float32, torch.float64]))
@settings(max_examples=15, deadline=None)
def test_a_single_maximum_is_that_of_amax(seed: int, dtype: torch.dtype) -> None:
    order = torch.randperm(2 * 3 * 20, generator=torch.Generator().manual_seed(seed)) - 50
    x, same = (order.view(2, 3, 4, 5).to(dtype).requires_grad_() for _ in range(2))
    pooled, expected = shared_maximum(x), same.amax(dim=(2, 3))
    assert torch.equal(pooled, expected)
    pooled.square().sum().backward()
    expected.square().sum().backward()
    assert torch.equal(x.grad, same.grad)  # type: ignore[arg-type]


def count(module: nn.Module) -> float:
    """Return millions of weights, spectral norm's own buffers not counted, as tables give them."""
    return round(sum(weight.numel() for weight in module.parameters()) / 1e6, 1)


def test_published_sizes() -> None:
    with torch.device("meta"):
        full, critics = build_networks(dataclasses.replace(preset("u-gat-it"), fq="none"), 3)
        light, _ = build_networks(dataclasses.replace(preset("u-gat-it-light"), fq="none"), 3)
    assert (count(full.a_to_b), count(light.a_to_b)) == (279.0, 10.6)
    assert (count(critics.global_a), count(critics.local_a)) == (53.1, 3.3)


def test_quantizers_sit_where_the_table_says() -> None:
    config = preset("u-gat-it-light")
    assert (config.commitment, config.decay, config.weight_decay, config.cam_weight) == (
        2.0,
        0.85,
        1e-4,
        1000,
    )
    small = dataclasses.replace(config, width=2, image_size=128)
    _, critics = build_networks(small, 3)
    for critic in (critics.global_a, critics.global_b):
        layers = {name: (layer.dim, layer.num_codes) for name, layer in critic.quantizers.items()}
        assert layers == {"1": (4, 64), "2": (8, 128), "3": (16, 128)}
    assert not critics.local_a.quantizers
    seen: list[tuple[int, ...]] = []
    for layer in critics.global_a.quantizers.values():
        layer.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape[1:])))
    images = torch.randn(2, 3, 128, 128)
    judgements = critics(images, images)
    assert seen == [(4, 32, 32), (8, 16, 16), (16, 8, 8)]
    assert [tuple(j.scores.shape) for j in judgements] == [(2, 1, 2, 2), (2, 1, 14, 14)] * 2
    assert all(j.logits.shape == (2, 2) for j in judgements)
    assert critics.global_a.quantizers["1"] is not critics.global_b.quantizers["1"]


def test_losses_are_what_the_paper_says() -> None:
    random = np.random.default_rng(0)
    raw = [(random.normal(size=(4, 1, 3, 3)), random.normal(size=(4, 2))) for _ in range(4)]
    judgements = [Judgement(*map(torch.from_numpy, pair)) for pair in raw]
    flat = [part for pair in raw for part in pair]
    expected = sum(((part[2:] - 1) ** 2).mean() + (part[:2] ** 2).mean() for part in flat)
    assert float(critic_loss(judgements)) == pytest.approx(expected, rel=1e-6)
    assert float(adversarial_loss(judgements)) == pytest.approx(
        sum(((part - 1) ** 2).mean() for part in flat), rel=1e-6
    )
    images = [torch.from_numpy(random.normal(size=(2, 1, 4, 4))).float() for _ in range(8)]
    logits = [torch.from_numpy(random.normal(size=(2, 2))).float() for _ in range(4)]
    made = [Translation(image, logit, image) for image, logit in zip(images, logits, strict=False)]
    trip = Round(made[0], made[1], images[4], images[5], made[2], made[3])
    a, b = images[6], images[7]
    assert float(cycle_loss(trip, a, b)) == pytest.approx(
        float((images[4] - a).abs().mean() + (images[5] - b).abs().mean())
    )
    assert float(identity_loss(trip, a, b)) == pytest.approx(
        float((made[3].images - a).abs().mean() + (made[2].images - b).abs().mean())
    )
    source, target = torch.cat(logits[:2]).sigmoid(), torch.cat(logits[2:]).sigmoid()
    assert float(attention_loss(trip)) == pytest.approx(
        float(-2 * source.log().mean() - 2 * (1 - target).log().mean()), rel=1e-5
    )


def make(config: UGATITConfig) -> UGATITTask:
    return UGATITTask(config, load_unpaired("digits", size=config.image_size), Accelerator(cpu=True))


@pytest.mark.parametrize("light", [True, False])
@pytest.mark.parametrize("fq", ["none", "regularize", "straight_through"])
def test_one_step(light: bool, fq: str) -> None:
    task = make(dataclasses.replace(TINY, light=light, fq=fq))
    before = {name: weight.clone() for name, weight in task.translators.named_parameters()}
    codes = [layer.codebook.clone() for layer in task.quantizers.values()]
    values = task.step(0)
    assert all(bool(value.isfinite()) for value in values.values())
    moved = [
        name for name, weight in task.translators.named_parameters() if not torch.equal(weight, before[name])
    ]
    assert len(moved) > 0.9 * len(before)
    assert ("commitment/d" in values) == (fq != "none")
    assert len(task.quantizers) == (4 if fq != "none" else 0)
    assert all(
        not torch.equal(layer.codebook, code)
        for layer, code in zip(task.quantizers.values(), codes, strict=True)
    )
    rhos = [module.rho for module in task.translators.modules() if isinstance(module, (AdaLIN, LIN))]
    assert all(bool(((rho >= 0) & (rho <= 1)).all()) for rho in rhos)
    assert all(weight.requires_grad for weight in task.critics.parameters())


def test_dictionaries_hold_still_in_the_generators_step() -> None:
    task = make(TINY)
    batches = [(torch.rand(2, 1, 16, 16), torch.rand(2, 1, 16, 16))]
    task._critic_step(batches)
    codes = [layer.codebook.clone() for layer in task.quantizers.values()]
    task._generator_step(batches)
    assert all(map(torch.equal, codes, (layer.codebook for layer in task.quantizers.values())))
    moving = make(dataclasses.replace(TINY, fq_update_in_generator_step=True))
    moving._critic_step(batches)
    codes = [layer.codebook.clone() for layer in moving.quantizers.values()]
    moving._generator_step(batches)
    assert not any(map(torch.equal, codes, (layer.codebook for layer in moving.quantizers.values())))


def test_fq_changes_no_other_weight_at_the_start() -> None:
    with_fq, without = make(TINY), make(dataclasses.replace(TINY, fq="none"))
    a, b = with_fq.critics.state_dict(), without.critics.state_dict()
    assert all(torch.equal(a[name], value) for name, value in b.items())
    assert all(".quantizers." in name for name in a.keys() - b.keys())


def test_the_learning_rate_falls_linearly() -> None:
    config = dataclasses.replace(TINY, lr=1e-3, lr_decay_start=10, lr_decay_end=20)
    rates = [learning_rate(config, step) for step in (0, 10, 15, 20, 25)]
    assert rates == pytest.approx([1e-3, 1e-3, 5e-4, 0, 0])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    assert train(UGATIT_TRAINER, TINY, out=run).step == 4
    return run


def test_a_run_folder_is_complete(finished: Path) -> None:
    names = {"config.json", "metrics.csv", "checkpoints", "samples.png", "curves.png", "evaluation.json"}
    assert {path.name for path in finished.iterdir()} == names
    record = json.loads((finished / "evaluation.json").read_text())
    rows = read_metrics(finished / "metrics.csv")
    assert record["A to B"]["extractor"] == "random-cnn"
    assert record["B to A"]["kid"] == pytest.approx(rows[-1]["kid[random-cnn]/B to A"], rel=1e-5)
    assert all("usage/B conv1" in row for row in rows)
    with Image.open(finished / "samples.png") as picture:
        assert picture.size == (8 * 68 + 4, 16 + 4 * 68 + 4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image_size": 24}, "image_size is 24; expected a power of two"),
        ({"fq_layers": (0, 3)}, "a global discriminator has convolutions 0 to 2"),
        ({"num_codes": (4,)}, r"num_codes are \(4,\); expected one size for each of \(0, 1\)"),
        ({"global_layers": 6}, "global_layers is 6; .* 16 pixels, halved 4 times, leave 4"),
        ({"lr_decay_start": 9}, "lr_decay_start is 9, lr_decay_end 5"),
    ],
)
def test_options_that_do_not_fit(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TINY, **changed)


def test_presets() -> None:
    assert all(name == config.preset for name, config in PRESETS.items())
    with pytest.raises(ConfigError, match="did you mean 'u-gat-it'"):
        preset("ugatit")
    with pytest.raises(ConfigError, match="domain A has 80 training images; expected at least batch_size 81"):
        make(dataclasses.replace(TINY, batch_size=81))
