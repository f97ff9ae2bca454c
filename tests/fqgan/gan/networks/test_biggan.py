"""BigGAN: sizes, shapes, spectral norm, attention, and states in the released naming."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fq_toolkit.fqgan.gan.config import FQGANConfig
from fq_toolkit.fqgan.gan.networks import blocks
from fq_toolkit.fqgan.gan.networks.biggan import WIDTHS, BigGANGenerator, build_biggan
from fq_toolkit.fqgan.gan.networks.blocks import SelfAttention, VectorBatchNorm, normal, orthogonal, sn_conv
from fq_toolkit.fqgan.gan.networks.quantization import quantizer_factory
from fq_toolkit.fqgan.gan.networks.released_names import load_released, to_released
from fq_toolkit.fqgan.gan.networks.residual import ImageShape, ResidualDiscriminator
from fq_toolkit.fqgan.gan.networks.spectral import SpectralNorm
from fq_toolkit.training.errors import CheckpointError, ConfigError

TINY = FQGANConfig(
    fq="regularize", family="biggan", channels=2, latent_size=12, fq_layers=(0, 2), num_codes=8,
    fq_init="normal", initial="normal",
)  # fmt: skip
HIERARCHICAL = dataclasses.replace(TINY, shared_size=6, hierarchical=True, latent_size=60)


def build(config: FQGANConfig, size: int, classes: int = 3) -> tuple[nn.Module, ResidualDiscriminator]:
    generator, discriminator = build_biggan(
        config, ImageShape(3, size, size, classes), quantizer_factory(config)
    )
    assert isinstance(discriminator, ResidualDiscriminator)
    return generator, discriminator


@pytest.mark.parametrize(("size", "attention", "millions"), [(32, 0, 4.2), (64, 32, 19.6), (128, 64, 38.4)])
def test_weights_of_the_discriminator(
    size: int, attention: int, millions: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At ch 64 and 10 classes."""
    monkeypatch.setattr(blocks, "spectral_norm", lambda module: module)  # slow without data, adds no weights
    config = FQGANConfig(family="biggan", channels=64, attention=attention, fq="none")
    with torch.device("meta"):
        _, discriminator = build(config, size, classes=10)
    count = sum(weight.numel() for weight in discriminator.parameters())
    assert round(count / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        (32, [16, 8, 8, 8]),
        (64, [32, 16, 8, 4, 4]),
        (128, [64, 32, 16, 8, 4, 4]),
        (256, [128, 64, 32, 16, 8, 4, 4]),
    ],
)
def test_shapes_per_stage(size: int, sizes: list[int]) -> None:
    table = WIDTHS[size]
    config = dataclasses.replace(HIERARCHICAL, attention=size // 2, latent_size=3 * len(table.generator))
    generator, discriminator = build(config, size)
    seen: dict[str, list[tuple[int, ...]]] = {"g": [], "d": []}
    for key, model in (("g", generator), ("d", discriminator)):
        for block in model.blocks:
            block.register_forward_hook(lambda _, __, out, key=key: seen[key].append(tuple(out.shape[1:3])))
    labels = torch.tensor([0, 2])
    with torch.no_grad():
        images = generator(torch.randn(2, generator.latent_size), labels)
        scores = discriminator(images, labels)
    assert images.shape == (2, 3, size, size)
    assert images.abs().max() <= 1
    assert scores.shape == (2,)
    assert seen["g"] == [(2 * w, 8 << i) for i, w in enumerate(table.generator[1:])]
    assert seen["d"] == [(2 * w, s) for w, s in zip(table.discriminator, sizes, strict=True)]
    # Attention is at half the image's size: in D after its first block, in G before its last.
    assert list(discriminator.attention) == ["0"]
    assert list(generator.attention) == [str(len(table.generator) - 3)]


def test_attention_comes_after_the_quantizer() -> None:
    _, discriminator = build(dataclasses.replace(TINY, attention=16), 32)
    order: list[str] = []
    for name in ("blocks", "quantizers", "attention"):
        getattr(discriminator, name).get_submodule("0").register_forward_hook(
            lambda *_, name=name: order.append(name)
        )
    discriminator(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
    assert order == ["blocks", "quantizers", "attention"]


@pytest.mark.parametrize("inputs", [3, 7])
def test_power_iteration_against_numpy(inputs: int) -> None:
    """One iteration in each training forward, none in evaluation; sigma from the vectors after it."""
    conv = sn_conv(inputs, 4, 3)
    with torch.no_grad():
        conv.parametrizations.weight.original.normal_()
    raw = conv.parametrizations.weight.original.detach().double().numpy().reshape(4, -1)
    norm = conv.parametrizations.weight[0]
    u = norm._u.double().numpy()
    x = torch.randn(1, inputs, 5, 5)
    for _ in range(3):
        conv(x)
        v = raw.T @ u
        v /= np.linalg.norm(v)
        u = raw @ v
        u /= np.linalg.norm(u)
    np.testing.assert_allclose(norm._u.numpy(), u, atol=1e-5)
    np.testing.assert_allclose(norm._v.numpy(), v, atol=1e-5)
    conv.eval()
    conv(x)
    np.testing.assert_allclose(norm._u.numpy(), u, atol=1e-5)
    weight = conv.weight.detach().double().numpy().reshape(4, -1)
    np.testing.assert_allclose(weight, raw / (u @ raw @ v), rtol=1e-4, atol=1e-6)


def test_further_singular_values_and_iterations() -> None:
    """Each vector is made orthogonal to those before it; many iterations find the values of the SVD."""
    conv = sn_conv(2, 4, 3)
    norm = conv.parametrizations.weight[0]
    weight = conv.parametrizations.weight.original
    with torch.no_grad():
        weight.normal_()
    before = list(conv.state_dict())
    norm.look_at(values=3, iterations=400)
    conv(torch.randn(1, 2, 5, 5))
    expected = torch.linalg.svdvals(weight.detach().flatten(1))[:3]
    torch.testing.assert_close(norm._values, expected)
    torch.testing.assert_close(conv.eval().weight, weight / expected[0])
    assert set(conv.state_dict()) - set(before) == {f"parametrizations.weight.0._u{i}" for i in (1, 2)}


def test_singular_values_and_iterations_are_options() -> None:
    options = dataclasses.replace(TINY, singular_values=2, power_iterations=3)
    for model in build(options, 32):
        norms = [module for module in model.modules() if isinstance(module, SpectralNorm)]
        assert {(len(norm.lefts()), norm.iterations) for norm in norms} == {(2, 3)}


def test_a_state_without_singular_values_loads() -> None:
    """Older checkpoints have the vectors only."""
    conv, other = sn_conv(2, 4, 3), sn_conv(2, 4, 3)
    state = {name: value for name, value in conv.state_dict().items() if not name.endswith("_values")}
    assert len(state) == len(conv.state_dict()) - 1
    other.load_state_dict(state)
    assert torch.equal(other.eval().weight, conv.eval().weight)


def test_attention_at_several_sizes() -> None:
    generator, discriminator = build(dataclasses.replace(TINY, fq="none", attention="32_64"), 128)
    assert list(generator.attention) == ["2", "3"]
    assert list(discriminator.attention) == ["0", "1"]


def test_attention_against_softmax_written_out() -> None:
    layer = SelfAttention(16).double().eval()
    x = torch.randn(2, 16, 4, 6, dtype=torch.double)
    torch.testing.assert_close(layer(x), x, rtol=0, atol=0)  # gamma starts at zero
    with torch.no_grad():
        layer.gamma.fill_(0.7)
    theta, phi, g, o = (
        getattr(layer, name).weight.detach()[:, :, 0, 0] for name in ("theta", "phi", "g", "o")
    )
    expected = x.clone()
    for b in range(2):
        pooled = {}
        for name, weight in (("phi", phi), ("g", g)):
            mapped = torch.einsum("oc,chw->ohw", weight, x[b])
            pooled[name] = mapped.reshape(-1, 2, 2, 3, 2).amax((2, 4)).flatten(1)
        for i in range(4):
            for j in range(6):
                scores = (theta @ x[b, :, i, j]) @ pooled["phi"]
                weights = scores.exp() / scores.exp().sum()
                expected[b, :, i, j] += 0.7 * (o @ (pooled["g"] @ weights))
    torch.testing.assert_close(layer(x), expected)


def test_norm_with_a_vector_condition() -> None:
    norm = VectorBatchNorm(5, 3, start=orthogonal)
    x, condition = torch.randn(4, 5, 6, 6), torch.randn(4, 3)
    y = norm(x, condition)
    gain, bias = (condition @ getattr(norm.eval(), name).weight.t() for name in ("gain", "bias"))
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    plain = (x - mean[:, None, None]) / (var + 1e-5).sqrt()[:, None, None]
    # The forward took one power iteration; the one before it is not far from it.
    torch.testing.assert_close(
        y, (1 + gain)[:, :, None, None] * plain + bias[:, :, None, None], rtol=1e-3, atol=1e-3
    )


def test_hierarchical_noise_reaches_its_block() -> None:
    """Part 0 makes the first map; part i + 1 changes what block i makes, and nothing before it."""
    generator, _ = build(HIERARCHICAL, 64)
    assert isinstance(generator, BigGANGenerator)
    generator.eval()
    maps: list[Tensor] = []
    for block in generator.blocks:
        block.register_forward_hook(lambda _, __, out: maps.append(out))
    z, labels = torch.randn(1, 60), torch.tensor([1])
    generator(z, labels)
    before, parts = maps[:], len(generator.blocks) + 1
    for part in range(parts):
        changed = z.clone()
        changed[:, part * generator.part_size] += 1
        maps.clear()
        generator(changed, labels)
        same = [torch.equal(a, b) for a, b in zip(before, maps, strict=True)]
        assert same == [i < part - 1 for i in range(parts - 1)]


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        ({}, 16, "images are 16x16; BigGAN is defined for 32x32"),
        ({"hierarchical": True}, 32, "shared class embedding"),
        ({"hierarchical": True, "shared_size": 4, "latent_size": 10}, 32, "multiple of 4"),
        ({"attention": 12}, 32, "attention is 12; expected 0"),
        ({"fq_layers": (0, 4)}, 32, "blocks 0 to 3"),
        ({"fq_layers": (3, -1)}, 32, "at most once"),
    ],
)
def test_options_that_do_not_fit(options: dict, size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(dataclasses.replace(TINY, **options), size)


def test_weights_start_as_asked() -> None:
    """N(0, 0.02^2) for every weight, as in the release; biases are zero."""
    torch.manual_seed(0)
    generator, discriminator = build(dataclasses.replace(TINY, channels=16), 32)
    for model in (generator, discriminator):
        for name, value in model.named_parameters():
            if "weight" in name and value.numel() > 1000:
                assert float(value.detach().std()) == pytest.approx(0.02, rel=0.15), name
                assert abs(float(value.detach().mean())) < 0.003, name
            elif name.endswith("bias"):
                assert not value.any(), name
    assert normal(nn.Linear(3, 3)).bias.abs().max() == 0


# Name in the release -> name here, for 32 pixels, attention at 16 and quantizers after blocks 0 and 2.
RELEASED = {
    "blocks.0.0.conv1": "blocks.0.conv1",
    "blocks.0.0.conv2": "blocks.0.conv2",
    "blocks.0.0.conv_sc": "blocks.0.shortcut",
    "blocks.0.1": "quantizers.0",
    "blocks.0.2.theta": "attention.0.theta",
    "blocks.0.2.phi": "attention.0.phi",
    "blocks.0.2.g": "attention.0.g",
    "blocks.0.2.o": "attention.0.o",
    "blocks.0.2.gamma": "attention.0.gamma",
    "blocks.1.0.conv1": "blocks.1.conv1",
    "blocks.1.0.conv2": "blocks.1.conv2",
    "blocks.1.0.conv_sc": "blocks.1.shortcut",
    "blocks.2.0.conv1": "blocks.2.conv1",
    "blocks.2.0.conv2": "blocks.2.conv2",
    "blocks.2.1": "quantizers.2",
    "blocks.3.0.conv1": "blocks.3.conv1",
    "blocks.3.0.conv2": "blocks.3.conv2",
    "linear": "linear",
    "embed": "project",
}
BARE = {"theta", "phi", "g", "o", "embed"}  # layers without a bias


def released_state(model: nn.Module) -> dict[str, Tensor]:
    """A state in the released naming with random values, by the table above."""
    ours, state = model.state_dict(), {}
    for released, name in RELEASED.items():
        if name.startswith("quantizers"):
            book = ours[f"{name}.codebook"]
            state[f"{released}.embed"] = torch.randn(book.shape[::-1])
            state[f"{released}.cluster_size"] = torch.rand(len(book))
            state[f"{released}.embed_avg"] = torch.randn(book.shape[::-1])
        elif name.endswith("gamma"):
            state[released] = torch.randn(())
        else:
            weight = ours[f"{name}.parametrizations.weight.original"]
            state[f"{released}.weight"] = torch.randn(weight.shape)
            state[f"{released}.u0"] = nn.functional.normalize(torch.randn(1, len(weight)))
            state[f"{released}.sv0"] = torch.ones(1)
            if released.rsplit(".", 1)[-1] not in BARE:
                state[f"{released}.bias"] = torch.randn(len(weight))
    return state


def test_a_released_state_loads_and_comes_back() -> None:
    _, model = build(dataclasses.replace(TINY, attention=16), 32)
    state = released_state(model)
    load_released(model, state)
    ours = model.state_dict()
    for released, name in RELEASED.items():
        if name.startswith("quantizers"):
            assert torch.equal(ours[f"{name}.codebook"], state[f"{released}.embed"].t())
            assert torch.equal(ours[f"{name}.ema_counts"], state[f"{released}.cluster_size"])
            assert torch.equal(ours[f"{name}.ema_sums"], state[f"{released}.embed_avg"].t())
            assert bool(ours[f"{name}.initialized"])
        elif name.endswith("gamma"):
            assert torch.equal(ours[name], state[released])
        else:
            raw = f"{name}.parametrizations.weight"
            assert torch.equal(ours[f"{raw}.original"], state[f"{released}.weight"])
            assert torch.equal(ours[f"{raw}.0._u"], state[f"{released}.u0"][0])
    back = to_released(model)
    assert back.keys() == state.keys()
    for name, value in state.items():
        if not name.endswith("sv0"):  # for logging only; ours is the value that is used
            assert torch.equal(back[name], value), name
    assert set(RELEASED.values()) == {
        name.split(".parametrizations")[0].removesuffix(".bias").removesuffix(".codebook")
        for name in ours
        if name.endswith((".bias", ".original", ".codebook", "gamma"))
    }


def test_the_loaded_norm_divides_by_the_released_value() -> None:
    """With converged vectors, the weight in evaluation is W / sigma_1."""
    _, model = build(TINY, 32)
    state = to_released(model)
    weight = state["blocks.1.0.conv1.weight"].flatten(1)
    state["blocks.1.0.conv1.u0"] = torch.linalg.svd(weight).U[:, :1].t().contiguous()
    load_released(model, state)
    sigma = torch.linalg.matrix_norm(weight, 2)
    torch.testing.assert_close(model.eval().blocks[1].conv1.weight.flatten(1), weight / sigma)


def test_a_state_that_does_not_fit() -> None:
    _, model = build(TINY, 32)
    state = to_released(model)
    state["embed.weight"] = torch.zeros(7, 8)
    del state["linear.bias"]
    state["blocks.9.0.conv1.bias"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        load_released(model, state)
    for line in (
        "3 entries differ",
        "blocks.9.0.conv1.bias is not part of this discriminator",
        "embed.weight has shape (7, 8), expected (3, 8)",
        "linear.bias is missing",
    ):
        assert line in str(caught.value)
