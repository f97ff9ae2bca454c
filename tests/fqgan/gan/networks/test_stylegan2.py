"""StyleGAN2: its layers against direct computations in float64, shapes, styles."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fq_toolkit.fqgan.gan.config import FQGANConfig
from fq_toolkit.fqgan.gan.networks.quantization import quantizer_factory
from fq_toolkit.fqgan.gan.networks.residual import ImageShape
from fq_toolkit.fqgan.gan.networks.stylegan2 import (
    StyleGAN2Discriminator,
    StyleGAN2Generator,
    build_stylegan2,
    stage_widths,
)
from fq_toolkit.fqgan.gan.networks.stylegan2_layers import (
    EqualizedConv,
    EqualizedLinear,
    ModulatedConv,
    group_size,
    minibatch_deviation,
    smoothing_kernel,
    upfirdn,
)
from fq_toolkit.fqgan.gan.sampling import Sampler
from fq_toolkit.training.errors import ConfigError

TINY = FQGANConfig(
    fq="regularize", family="stylegan2", channels=8, latent_size=6, fq_layers=(-2, -1), num_codes=8
)


def build(
    config: FQGANConfig = TINY, size: int = 16, classes: int = 1
) -> tuple[StyleGAN2Generator, StyleGAN2Discriminator]:
    generator, discriminator = build_stylegan2(
        config, ImageShape(3, size, size, classes), quantizer_factory(config)
    )
    assert isinstance(generator, StyleGAN2Generator)
    assert isinstance(discriminator, StyleGAN2Discriminator)
    return generator, discriminator


def direct_upfirdn(x: np.ndarray, kernel: np.ndarray, up: int, down: int, pad: tuple[int, int]) -> np.ndarray:
    """One channel (H, W), sample by sample: insert zeros, pad, convolve, keep every down-th."""
    height, width = x.shape
    wide = np.zeros((height * up + sum(pad), width * up + sum(pad)))
    for i in range(height):
        for j in range(width):
            wide[pad[0] + i * up, pad[0] + j * up] = x[i, j]
    k = len(kernel)
    rows, columns = wide.shape[0] - k + 1, wide.shape[1] - k + 1
    out = np.zeros((rows, columns))
    for i in range(rows):
        for j in range(columns):
            for a in range(k):
                for b in range(k):
                    out[i, j] += kernel[a, b] * wide[i + k - 1 - a, j + k - 1 - b]
    return out[::down, ::down]


@given(
    up=st.integers(1, 3),
    down=st.integers(1, 3),
    pad=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    size=st.tuples(st.integers(3, 5), st.integers(3, 5)),
    seed=st.integers(0, 99),
)
@settings(max_examples=15, deadline=None)
def test_upfirdn_against_direct_convolution(
    up: int, down: int, pad: tuple[int, int], size: tuple[int, int], seed: int
) -> None:
    draws = np.random.default_rng(seed)
    x, kernel = draws.standard_normal((2, 2, *size)), draws.standard_normal((4, 4))
    found = upfirdn(torch.from_numpy(x), torch.from_numpy(kernel), up=up, down=down, pad=pad)
    for b in range(2):
        for c in range(2):
            np.testing.assert_allclose(
                found[b, c], direct_upfirdn(x[b, c], kernel, up, down, pad), atol=1e-12
            )


def test_smoothing_keeps_a_constant() -> None:
    ones = torch.ones(1, 1, 8, 8)
    doubled = upfirdn(ones, smoothing_kernel() * 4, up=2, pad=(2, 1))
    halved = upfirdn(ones, smoothing_kernel(), down=2, pad=(1, 1))
    assert doubled.shape == (1, 1, 16, 16)
    assert halved.shape == (1, 1, 4, 4)
    torch.testing.assert_close(doubled[:, :, 2:-2, 2:-2], torch.ones(1, 1, 12, 12))
    torch.testing.assert_close(halved[:, :, 1:-1, 1:-1], torch.ones(1, 1, 2, 2))


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize(("kernel", "up"), [(1, False), (3, False), (3, True)])
def test_modulated_conv_against_direct_convolution(demodulate: bool, kernel: int, up: bool) -> None:
    """Equations 1 and 3, sample by sample: scale the weights, normalize them, convolve."""
    torch.manual_seed(0)
    layer = ModulatedConv(3, 4, kernel, 5, demodulate=demodulate, up=up).double()
    x, style = torch.randn(2, 3, 6, 5, dtype=torch.double), torch.randn(2, 5, dtype=torch.double)
    scales = style @ (layer.scales.weight.t() / math.sqrt(5)) + 1
    expected = []
    for b in range(2):
        weight = scales[b, :, None, None] * layer.weight / math.sqrt(3 * kernel**2)
        if demodulate:
            weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        maps = x[b]
        if up:  # zeros between the pixels and, at the edges, as far as the convolution and the filter reach
            wide = torch.zeros(3, 12 + 2 * 3 - 1, 10 + 2 * 3 - 1, dtype=torch.double)
            wide[:, 3:-3:2, 3:-3:2] = maps
            maps = nn.functional.conv2d(wide[None], weight)[0]
            blur = torch.from_numpy(
                np.stack(
                    [direct_upfirdn(m.detach().numpy(), layer.smoothing.numpy(), 1, 1, (0, 0)) for m in maps]
                )
            )
            expected.append(blur)
        else:
            expected.append(nn.functional.conv2d(maps[None], weight, padding=kernel // 2)[0].detach())
    torch.testing.assert_close(layer(x, style).detach(), torch.stack(expected))


@pytest.mark.parametrize("kernel", [1, 3])
def test_downsampling_conv(kernel: int) -> None:
    """The same as filtering first and then convolving with stride 2, on the map padded once."""
    layer = EqualizedConv(2, 3, kernel, down=True, activation=False).double()
    x = torch.randn(1, 2, 8, 8, dtype=torch.double)
    weight = (layer.weight / math.sqrt(2 * kernel**2)).detach()
    pad = kernel // 2 + 1
    smooth = np.stack(
        [direct_upfirdn(m.numpy(), smoothing_kernel().double().numpy(), 1, 1, (pad, pad)) for m in x[0]]
    )
    expected = nn.functional.conv2d(torch.from_numpy(smooth)[None], weight, stride=2)
    assert expected.shape == (1, 3, 4, 4)
    torch.testing.assert_close(layer(x).detach(), expected)


def test_equalized_learning_rate() -> None:
    """The output of a fresh layer does not depend on the multiplier, the speed of learning does."""
    outputs, steps = [], []
    for multiplier in (1.0, 0.01):
        torch.manual_seed(0)
        layer = EqualizedLinear(16, 4, bias=0.5, lr_multiplier=multiplier)
        before = layer(torch.ones(1, 16))
        before.sum().backward()
        with torch.no_grad():
            for parameter in layer.parameters():  # a step of Adam has the same size for all weights
                parameter.sub_(1e-3 * parameter.grad.sign())
        outputs.append(before.detach())
        steps.append((layer(torch.ones(1, 16)) - before).detach().abs().mean())
    torch.testing.assert_close(outputs[0], outputs[1])
    assert float(steps[1] / steps[0]) == pytest.approx(0.01, rel=1e-2)


@pytest.mark.parametrize(("count", "size"), [(8, 4), (6, 3), (4, 4), (5, 1), (2, 2), (1, 1), (9, 3)])
def test_groups(count: int, size: int) -> None:
    assert group_size(count) == size


def test_minibatch_deviation_with_six() -> None:
    """Groups of three neighbours; the channel is the mean over features of their standard deviation."""
    x = torch.randn(6, 5, 4, 4, dtype=torch.double)
    y = minibatch_deviation(x)
    assert y.shape == (6, 6, 4, 4)
    assert torch.equal(y[:, :5], x)
    for start in (0, 3):
        group = x[start : start + 3].numpy()
        expected = np.sqrt(group.var(axis=0) + 1e-8).mean()
        np.testing.assert_allclose(y[start : start + 3, 5], np.full((3, 4, 4), expected))


@given(half=st.integers(1, 9))
@settings(max_examples=9, deadline=None)
def test_halves_do_not_see_each_other(half: int) -> None:
    fake, real = torch.randn(half, 2, 4, 4), torch.randn(half, 2, 4, 4)
    together = minibatch_deviation(torch.cat([fake, real]), parts=2)
    torch.testing.assert_close(together, torch.cat([minibatch_deviation(fake), minibatch_deviation(real)]))


def test_a_batch_that_has_no_halves() -> None:
    with pytest.raises(ValueError, match="a batch of 3 does not consist of 2 equal parts"):
        minibatch_deviation(torch.zeros(3, 1, 4, 4), parts=2)


def test_widths_are_those_of_configuration_e() -> None:
    assert stage_widths(512, 1024) == {
        4: 512, 8: 512, 16: 512, 32: 512, 64: 256, 128: 128, 256: 64, 512: 32, 1024: 16
    }  # fmt: skip


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("size", [8, 32])
def test_shapes_per_stage(size: int, classes: int) -> None:
    generator, discriminator = build(dataclasses.replace(TINY, fq_layers=(-1,)), size, classes)
    seen: dict[str, list[int]] = {"g": [], "d": []}
    for conv in generator.convs:
        conv.register_forward_hook(lambda _, __, out: seen["g"].append(out.shape[2]))
    for block in discriminator.blocks:
        block.register_forward_hook(lambda _, __, out: seen["d"].append(out.shape[2]))
    labels = torch.arange(4) % classes
    images, styles = generator(torch.randn(4, 6), labels, True)
    assert images.shape == (4, 3, size, size)
    assert styles.shape == (4, len(seen["g"]) + 1, 6)
    assert discriminator(images, labels).shape == (4,)
    sizes = [4 << i for i in range(int(math.log2(size)) - 1)]
    assert seen["g"] == [4, *(s for size in sizes[1:] for s in (size, size))]
    assert seen["d"] == sizes[-2::-1]
    assert list(discriminator.quantizers) == [str(len(sizes) - 2)]  # counted from the last


def test_quantizers_are_at_16_and_8_whatever_the_size() -> None:
    config = dataclasses.replace(TINY, channels=512, fq_layers=(-3, -2))
    for size in (32, 1024):
        with torch.device("meta"):
            _, discriminator = build(config, size)
        outputs = [size >> (i + 1) for i in range(len(discriminator.blocks))]
        assert [outputs[int(i)] for i in discriminator.quantizers] == [16, 8]
        assert [layer.dim for layer in discriminator.quantizers.values()] == [512, 512]


def test_classes_matter_and_one_class_is_ignored() -> None:
    z, images = torch.randn(1, 6), torch.randn(1, 3, 16, 16)
    for classes, differ in ((1, False), (3, True)):
        generator, discriminator = build(TINY, 16, classes)
        generator.eval()
        first, second = torch.tensor([0]), torch.tensor([classes - 1])
        assert torch.equal(generator.mapping(z, first), generator.mapping(z, second)) != differ
        assert torch.equal(discriminator(images, first), discriminator(images, second)) != differ


def test_noise_has_no_effect_until_its_strength_is_learned() -> None:
    generator, _ = build()
    generator.eval()
    z, labels = torch.randn(2, 6), torch.zeros(2).long()
    assert torch.equal(generator(z, labels), generator(z, labels))
    with torch.no_grad():
        generator.convs[0].strength.fill_(1.0)
    assert not torch.equal(generator(z, labels), generator(z, labels))


def test_style_mixing() -> None:
    """In training, the styles of a batch come from one noise up to a layer and from another after it."""
    torch.manual_seed(1)
    generator, _ = build(dataclasses.replace(TINY, style_mixing=1.0))
    z, labels = torch.randn(3, 6), torch.zeros(3).long()
    cuts = set()
    for _ in range(60):
        styles = generator.styles(z, labels)
        own = (styles == generator.mapping(z, labels)[:, None]).all(2)
        cut = int(own[0].sum())
        assert torch.equal(own, (torch.arange(generator.num_styles) < cut).expand(3, -1))
        assert (styles[:, cut:] == styles[:, -1:]).all()
        cuts.add(cut)
    assert cuts == set(range(1, generator.num_styles))
    generator.eval()
    assert (generator.styles(z, labels) == generator.styles(z, labels)[:, :1]).all()


def test_truncation_goes_to_the_mean_style() -> None:
    generator, _ = build()
    before = generator.running_style.clone()
    z, labels = torch.randn(4, 6), torch.zeros(4).long()
    generator(z, labels)
    w = generator.mapping(z, labels).detach()
    torch.testing.assert_close(generator.running_style, before + 0.005 * (w.mean(0) - before))
    generator.eval()
    torch.testing.assert_close(generator.truncated(z, labels, 1.0), generator(z, labels))
    mean = generator.truncated(z, labels, 0.0)
    torch.testing.assert_close(mean, mean[:1].expand_as(mean))
    assert not torch.allclose(generator.truncated(z, labels, 0.5), mean)


def test_sampled_images_are_bounded() -> None:
    generator, _ = build()
    with torch.no_grad():
        generator.image_biases[0].fill_(5.0)
    images = Sampler(generator.eval())(torch.zeros(3).long())
    assert float(generator(torch.randn(3, 6), torch.zeros(3).long()).max()) > 1
    assert images.abs().max() == 1


@pytest.mark.parametrize("size", [4, 12])
def test_sizes_that_do_not_fit(size: int) -> None:
    with pytest.raises(ConfigError, match=rf"images are \({size}, {size}\); expected square"):
        build(TINY, size)


def gradients(model: nn.Module) -> list[Tensor]:
    return [weight.grad for weight in model.parameters() if weight.grad is not None]


def test_every_weight_is_trained() -> None:
    generator, discriminator = build(TINY, 16, classes=2)
    labels = torch.tensor([0, 1, 0, 1])
    discriminator(generator(torch.randn(4, 6), labels), labels).sum().backward()
    for model in (generator, discriminator):
        assert len(gradients(model)) == len(list(model.parameters()))
