"""Generator and discriminators of U-GAT-IT (arXiv 1907.10830), and the pairs of them that are trained."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fq_toolkit.fqgan.gan.networks.quantization import make_quantizer
from fq_toolkit.fqgan.gan.networks.spectral import spectral_norm
from fq_toolkit.fqgan.ugatit.config import UGATITConfig
from fq_toolkit.fqgan.ugatit.layers import LIN, AdaLIN, ClassActivationMap
from fq_toolkit.training.seeding import isolated_rng


class Translation(NamedTuple):
    """Translated images, and where the generator looked.

    images: (B, C, H, W) in [-1, 1].
    logits: (B, 2): whether its attention sees the domain that it translates from.
    heatmap: (B, 1, h, w): where it looks.
    """

    images: Tensor
    logits: Tensor
    heatmap: Tensor


class Judgement(NamedTuple):
    """Scores (B, 1, h, w) of patches, and logits (B, 2) of the discriminator's attention."""

    scores: Tensor
    logits: Tensor


# Reflection pads as the release does; zeros would show as a frame in translated images. The norms that follow
# take a bias away again, so there is none.
def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    return [nn.ReflectionPad2d(kernel // 2), nn.Conv2d(inputs, outputs, kernel, stride, bias=False)]


class ResidualBlock(nn.Module):
    """x + conv 3x3 - instance norm - ReLU - conv 3x3 - instance norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(*_conv(channels, channels, 3), nn.InstanceNorm2d(channels), nn.ReLU()),
            *(*_conv(channels, channels, 3), nn.InstanceNorm2d(channels)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, H, W) to the same."""
        return x + self.body(x)


class AdaptiveBlock(nn.Module):
    """x + conv 3x3 - AdaLIN - ReLU - conv 3x3 - AdaLIN."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*_conv(channels, channels, 3))
        self.norm1 = AdaLIN(channels)
        self.conv2 = nn.Sequential(*_conv(channels, channels, 3))
        self.norm2 = AdaLIN(channels)

    def forward(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        """Map x (B, C, H, W), with gamma and beta (B, C), to the same."""
        hidden = torch.relu(self.norm1(self.conv1(x), gamma, beta))
        return x + self.norm2(self.conv2(hidden), gamma, beta)


class UGATITGenerator(nn.Module):
    """Down twice, residual blocks, attention, blocks with AdaLIN, up twice.

    gamma and beta of AdaLIN come from the attended features: from all of them (full), or from their average
    over the image (light), which saves nine tenths of the weights.

    Args:
        channels: channels of the images.
        size: height and width of the images, a multiple of 4.
        width: channels after the first convolution.
        blocks: residual blocks before the attention, and as many after it.
        light: gamma and beta from the average.
    """

    def __init__(self, *, channels: int, size: int, width: int = 64, blocks: int = 4, light: bool) -> None:
        super().__init__()
        self.light, inner = light, 4 * width
        down: list[nn.Module] = [*_conv(channels, width, 7), nn.InstanceNorm2d(width), nn.ReLU()]
        for inputs in (width, 2 * width):
            down += [*_conv(inputs, 2 * inputs, 3, 2), nn.InstanceNorm2d(2 * inputs), nn.ReLU()]
        self.down = nn.Sequential(*down, *(ResidualBlock(inner) for _ in range(blocks)))
        self.attention = ClassActivationMap(inner, nn.ReLU())
        # The first layer below has nine tenths of a full generator's weights.
        inputs = inner if light else inner * (size // 4) ** 2
        self.style = nn.Sequential(
            *(nn.Linear(inputs, inner, bias=False), nn.ReLU()),
            *(nn.Linear(inner, inner, bias=False), nn.ReLU()),
        )
        self.gamma = nn.Linear(inner, inner, bias=False)
        self.beta = nn.Linear(inner, inner, bias=False)
        self.blocks = nn.ModuleList(AdaptiveBlock(inner) for _ in range(blocks))
        up: list[nn.Module] = []
        for inputs in (4 * width, 2 * width):
            up += [nn.Upsample(scale_factor=2), *_conv(inputs, inputs // 2, 3), LIN(inputs // 2), nn.ReLU()]
        self.up = nn.Sequential(*up, *_conv(width, channels, 7), nn.Tanh())

    def forward(self, images: Tensor) -> Translation:
        """Translate images (B, channels, size, size) in [-1, 1]."""
        x, logits = self.attention(self.down(images))
        heatmap = x.sum(1, keepdim=True)  # attended features are not negative
        style = self.style(x.mean(dim=(2, 3)) if self.light else x.flatten(1))
        gamma, beta = self.gamma(style), self.beta(style)
        for block in self.blocks:
            x = block(x, gamma, beta)
        return Translation(self.up(x), logits, heatmap)


class UGATITDiscriminator(nn.Module):
    """Convolutions that halve the size, attention, and a score for every patch; spectral norm throughout.

    After convolution i (and its LeakyReLU) features pass ``quantizers[str(i)]`` if there is one: this is
    where FQ-GAN acts.

    Args:
        channels: channels of the images.
        layers: 7 for the global discriminator, 5 for the local one; all but the last two convolutions halve.
        width: channels after the first convolution; they double with each further one.
        quantizers: number of the convolution -> layer from (B, C, H, W) to the same.
    """

    def __init__(
        self, *, channels: int, layers: int, width: int = 64, quantizers: dict[int, nn.Module]
    ) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(layers - 1)]
        self.convs = nn.ModuleList(
            spectral_norm(nn.Conv2d(inputs, outputs, 4, 2 if i < layers - 2 else 1), stored=True)
            for i, (inputs, outputs) in enumerate(zip([channels, *widths], widths, strict=False))
        )
        self.pad, self.activation = nn.ReflectionPad2d(1), nn.LeakyReLU(0.2)
        self.quantizers = nn.ModuleDict({str(i): layer for i, layer in sorted(quantizers.items())})
        self.attention = ClassActivationMap(widths[-1], self.activation)
        spectral_norm(self.attention.average, stored=True)
        spectral_norm(self.attention.maximum, stored=True)
        self.score = spectral_norm(nn.Conv2d(widths[-1], 1, 4, bias=False), stored=True)

    def forward(self, images: Tensor) -> Judgement:
        """Judge images (B, channels, H, W); 1 is real, 0 is generated."""
        x = images
        for i, conv in enumerate(self.convs):
            x = self.activation(conv(self.pad(x)))
            if str(i) in self.quantizers:
                x = self.quantizers[str(i)](x)
        x, logits = self.attention(x)
        return Judgement(self.score(self.pad(x)), logits)


class Round(NamedTuple):
    """All translations that one update of the generators needs; A and B are the domains.

    to_b, to_a: A translated to B, and B to A.
    back_a, back_b: these translated back.
    same_b, same_a: B through the generator to B, and A through that to A: nothing should change.
    """

    to_b: Translation
    to_a: Translation
    back_a: Tensor
    back_b: Tensor
    same_b: Translation
    same_a: Translation


class Translators(nn.Module):
    """The generators of both directions.

    Args:
        make: builds a generator.
    """

    def __init__(self, make: Callable[[], UGATITGenerator]) -> None:
        super().__init__()
        self.a_to_b: UGATITGenerator = make()
        self.b_to_a: UGATITGenerator = make()

    def forward(self, real_a: Tensor, real_b: Tensor) -> Round:
        """Go there and back from both domains; images (B, C, H, W)."""
        to_b, to_a = self.a_to_b(real_a), self.b_to_a(real_b)
        back_a, back_b = self.b_to_a(to_b.images).images, self.a_to_b(to_a.images).images
        # In one forward: DDP counts on a single one before a backward.
        return Round(to_b, to_a, back_a, back_b, self.a_to_b(real_b), self.b_to_a(real_a))


class Critics(nn.Module):
    """A global and a local discriminator for each domain.

    Args:
        make_global: builds a global one.
        make_local: builds a local one.
    """

    def __init__(
        self, make_global: Callable[[], UGATITDiscriminator], make_local: Callable[[], UGATITDiscriminator]
    ) -> None:
        super().__init__()
        self.global_a: UGATITDiscriminator = make_global()
        self.local_a: UGATITDiscriminator = make_local()
        self.global_b: UGATITDiscriminator = make_global()
        self.local_b: UGATITDiscriminator = make_local()

    def forward(self, images_a: Tensor, images_b: Tensor) -> tuple[Judgement, ...]:
        """Judge images of both domains: A globally and locally, then B."""
        of_a = self.global_a(images_a), self.local_a(images_a)
        return (*of_a, self.global_b(images_b), self.local_b(images_b))


def build_networks(config: UGATITConfig, channels: int) -> tuple[Translators, Critics]:
    """Build generators and discriminators; draws from the global random state.

    Args:
        config: sizes and layers.
        channels: channels of the images.
    """

    def generator() -> UGATITGenerator:
        return UGATITGenerator(
            channels=channels,
            size=config.image_size,
            width=config.width,
            blocks=config.blocks,
            light=config.light,
        )

    def critic(layers: int, quantizers: dict[int, nn.Module]) -> UGATITDiscriminator:
        return UGATITDiscriminator(
            channels=channels, layers=layers, width=config.width, quantizers=quantizers
        )

    def quantizers() -> dict[int, nn.Module]:
        if config.fq == "none":
            return {}
        with isolated_rng(config.seed):  # the other weights are the same with and without quantization
            return {
                layer: make_quantizer(config, config.width * 2**layer, codes)
                for layer, codes in zip(config.fq_layers, config.num_codes, strict=True)
            }

    translators = Translators(generator)
    critics = Critics(
        lambda: critic(config.global_layers, quantizers()), lambda: critic(config.local_layers, {})
    )
    return translators, critics
