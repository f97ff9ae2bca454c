"""Residual generator and discriminator; the small class-conditional GAN of the digits."""

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fq_toolkit.fqgan.gan.config import FQGANConfig
from fq_toolkit.fqgan.gan.networks.blocks import (
    ConditionalBatchNorm,
    DiscriminatorBlock,
    GeneratorBlock,
    SelfAttention,
    Start,
    normalized,
    orthogonal,
    plain_conv,
)
from fq_toolkit.fqgan.gan.networks.spectral import look_at_singular_values
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.seeding import isolated_rng

# Number of channels -> layer that goes after a block.
MakeQuantizer = Callable[[int], nn.Module]


class ResidualGenerator(nn.Module):
    """z -> linear -> 4x4 -> residual blocks, each twice the size -> norm, ReLU, conv 3x3, tanh.

    Args:
        latent_size: size of z.
        num_classes: classes of the conditional norms.
        widths: channels at 4x4, 8x8, ...; one block between neighbours.
        image_channels: channels of the image.
    """

    def __init__(
        self, *, latent_size: int, num_classes: int, widths: tuple[int, ...], image_channels: int
    ) -> None:
        super().__init__()
        self.latent_size, self.num_classes = latent_size, num_classes
        self.linear = orthogonal(nn.Linear(latent_size, 16 * widths[0]))
        make_norm = partial(ConditionalBatchNorm, num_classes=num_classes)
        self.blocks = nn.ModuleList(
            GeneratorBlock(inputs, outputs, make_norm, plain_conv)
            for inputs, outputs in itertools.pairwise(widths)
        )
        self.norm = nn.BatchNorm2d(widths[-1])
        self.to_image = orthogonal(nn.Conv2d(widths[-1], image_channels, 3, padding=1))

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Map z (B, latent_size) and labels int64 (B,) to images (B, image_channels, H, W) in [-1, 1]."""
        # The layout of all convolutions: converted once here rather than in each of them.
        hidden = self.linear(z).unflatten(1, (-1, 4, 4)).contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            hidden = block(hidden, labels)
        return torch.tanh(self.to_image(functional.relu(self.norm(hidden))))


class ResidualDiscriminator(nn.Module):
    """Residual blocks with spectral norm, sum pooling, projection onto the class.

    ``D(x, y) = linear(h) + embed(y) . h`` with the pooled features h. After block i the features pass
    ``quantizers[str(i)]`` if there is one: this is where FQ-GAN acts. Then comes ``attention[str(i)]``.

    Source: arXiv 1802.05637, section 3 (the projection).

    Args:
        num_classes: classes of the projection.
        widths: channels after each block.
        down: whether each block halves the size.
        image_channels: channels of the image.
        quantizers: block number -> layer from (B, C, H, W) to the same.
        attention: numbers of the blocks that are followed by self-attention.
        start: how the weights start.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        widths: tuple[int, ...],
        down: tuple[bool, ...],
        image_channels: int,
        quantizers: dict[int, nn.Module],
        attention: tuple[int, ...] = (),
        start: Start = orthogonal,
    ) -> None:
        super().__init__()
        inputs = (image_channels, *widths)
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(inputs[i], widths[i], down=down[i], first=i == 0, start=start)
            for i in range(len(widths))
        )
        self.quantizers = nn.ModuleDict({str(i): layer for i, layer in sorted(quantizers.items())})
        self.attention = nn.ModuleDict({str(i): SelfAttention(widths[i], start=start) for i in attention})
        self.linear = normalized(nn.Linear(widths[-1], 1), start)
        self.project = normalized(nn.Embedding(num_classes, widths[-1]), start)

    def forward(self, images: Tensor, labels: Tensor, parts: int = 1) -> Tensor:
        """Score images.

        Args:
            images: (B, image_channels, H, W).
            labels: classes, int64 (B,).
            parts: how many equally large batches are concatenated. Nothing here looks across samples, so it
                makes no difference; StyleGAN2's discriminator does.

        Returns:
            (B,); higher is more real.
        """
        hidden = images
        for i, block in enumerate(self.blocks):
            hidden = block(hidden)
            if str(i) in self.quantizers:
                hidden = self.quantizers[str(i)](hidden)
            if str(i) in self.attention:
                hidden = self.attention[str(i)](hidden)
        pooled = functional.relu(hidden).sum(dim=(2, 3))
        return self.linear(pooled).squeeze(1) + (self.project(labels) * pooled).sum(1)


class ImageShape(NamedTuple):
    """The shape of the images and the number of their classes, which decide the networks."""

    channels: int
    height: int
    width: int
    num_classes: int


class Networks(NamedTuple):
    """A generator ``G(z, labels) -> images`` and a discriminator ``D(images, labels, parts) -> scores``.

    The generator has ``latent_size`` and ``num_classes``; the discriminator has ``quantizers``, a ModuleDict
    from the number of a block to the layer after it.
    """

    generator: nn.Module
    discriminator: nn.Module


def block_numbers(config: FQGANConfig, blocks: int) -> tuple[int, ...]:
    """Return ``config.fq_layers`` counted from the first block.

    Raises:
        ConfigError: for a block that does not exist, or one that is named twice.
    """
    if config.fq == "none":
        return ()
    numbers = tuple(layer + blocks if layer < 0 else layer for layer in config.fq_layers)
    if not all(0 <= number < blocks for number in numbers) or len(set(numbers)) != len(numbers):
        raise ConfigError(
            f"fq_layers are {config.fq_layers}; this discriminator has blocks 0 to {blocks - 1} (or, counted "
            f"from the last, -{blocks} to -1), each at most once"
        )
    return numbers


def make_quantizers(
    config: FQGANConfig, make_quantizer: MakeQuantizer | None, widths: Mapping[int, int]
) -> dict[int, nn.Module]:
    """Return number of a block -> its quantizer, from number of a block -> its channels."""
    if make_quantizer is None:
        return {}
    # Drawn apart, so that runs with and without quantization start from the same other weights.
    with isolated_rng(config.seed):
        return {number: make_quantizer(width) for number, width in widths.items()}


def build_residual(config: FQGANConfig, shape: ImageShape, make_quantizer: MakeQuantizer | None) -> Networks:
    """Build both networks for square images, 8, 16, 32, ... pixels wide.

    Raises:
        ConfigError: when the images do not fit the family, or a quantized block does not exist.
    """
    size = shape.height
    doublings = (size // 4).bit_length() - 1
    if size != 4 * 2**doublings or doublings < 1 or shape.width != size:
        raise ConfigError(
            f"images are {(size, shape.width)}; expected square, 8, 16, 32, ... pixels: "
            "give --image-size to scale and cut them"
        )
    # Discriminator: halve down to 4x4, then one block at that size. The generator mirrors it.
    widths = tuple(config.channels * 2**i for i in range(doublings)) + (config.channels * 2**doublings,)
    numbers = block_numbers(config, len(widths))
    generator = ResidualGenerator(
        latent_size=config.latent_size,
        num_classes=shape.num_classes,
        widths=widths[::-1],
        image_channels=shape.channels,
    )
    discriminator = ResidualDiscriminator(
        num_classes=shape.num_classes,
        widths=widths,
        down=tuple(i < doublings for i in range(len(widths))),
        image_channels=shape.channels,
        quantizers=make_quantizers(config, make_quantizer, {i: widths[i] for i in numbers}),
    )
    look_at_singular_values(discriminator, values=config.singular_values, iterations=config.power_iterations)
    return Networks(generator, discriminator)
