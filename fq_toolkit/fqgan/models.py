"""Generator and discriminator of the small class-conditional GAN, and the table of model families."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fq_toolkit.fqgan.blocks import DiscriminatorBlock, GeneratorBlock, normalized, orthogonal
from fq_toolkit.fqgan.config import FQGANConfig
from fq_toolkit.fqgan.datasets import ImageDataset
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.seeding import isolated_rng


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
        self.blocks = nn.ModuleList(
            GeneratorBlock(inputs, outputs, num_classes) for inputs, outputs in itertools.pairwise(widths)
        )
        self.norm = nn.BatchNorm2d(widths[-1])
        self.to_image = orthogonal(nn.Conv2d(widths[-1], image_channels, 3, padding=1))

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Map z (B, latent_size) and labels int64 (B,) to images (B, image_channels, H, W) in [-1, 1]."""
        hidden = self.linear(z).unflatten(1, (-1, 4, 4)).contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            hidden = block(hidden, labels)
        return torch.tanh(self.to_image(functional.relu(self.norm(hidden))))


class ResidualDiscriminator(nn.Module):
    """Residual blocks with spectral norm, sum pooling, projection onto the class (arXiv 1802.05637).

    After block i the features pass ``quantizers[str(i)]`` if there is one: this is where FQ-GAN acts.

    Args:
        num_classes: classes of the projection.
        widths: channels after each block.
        down: whether each block halves the size.
        image_channels: channels of the image.
        quantizers: block number -> layer from (B, C, H, W) to the same.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        widths: tuple[int, ...],
        down: tuple[bool, ...],
        image_channels: int,
        quantizers: dict[int, nn.Module],
    ) -> None:
        super().__init__()
        inputs = (image_channels, *widths)
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(inputs[i], widths[i], down=down[i], first=i == 0) for i in range(len(widths))
        )
        self.quantizers = nn.ModuleDict({str(i): layer for i, layer in sorted(quantizers.items())})
        self.linear = normalized(nn.Linear(widths[-1], 1))
        self.project = normalized(nn.Embedding(num_classes, widths[-1]))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Score images (B, image_channels, H, W) of classes int64 (B,) -> (B,); higher is more real."""
        hidden = images
        for i, block in enumerate(self.blocks):
            hidden = block(hidden)
            if str(i) in self.quantizers:
                hidden = self.quantizers[str(i)](hidden)
        pooled = functional.relu(hidden).sum(dim=(2, 3))
        return self.linear(pooled).squeeze(1) + (self.project(labels) * pooled).sum(1)


class Networks(NamedTuple):
    """A generator ``G(z, labels) -> images`` and a discriminator ``D(images, labels) -> scores``."""

    generator: ResidualGenerator
    discriminator: ResidualDiscriminator


def build_networks(
    config: FQGANConfig, data: ImageDataset, make_quantizer: Callable[[int], nn.Module] | None
) -> Networks:
    """Build both networks for a dataset of square images, 8, 16, 32, ... pixels wide.

    Args:
        config: widths and layers.
        data: gives image size and classes.
        make_quantizer: number of channels -> layer that goes after each of ``config.fq_layers``; None for no
            FQ.

    Raises:
        ConfigError: when the images do not fit the family, or a quantized block does not exist.
    """
    channels, size = data.images.shape[1], data.images.shape[2]
    doublings = (size // 4).bit_length() - 1
    if size != 4 * 2**doublings or doublings < 1 or data.images.shape[3] != size:
        raise ConfigError(
            f"images are {tuple(data.images.shape[2:])}; expected square, 8, 16, 32, ... pixels"
        )
    # Discriminator: halve down to 4x4, then one block at that size. The generator mirrors it.
    widths = tuple(config.channels * 2**i for i in range(doublings)) + (config.channels * 2**doublings,)
    blocks = len(widths)
    if config.fq != "none" and any(layer >= blocks for layer in config.fq_layers):
        raise ConfigError(
            f"fq_layers are {config.fq_layers}; this discriminator has blocks 0 to {blocks - 1}"
        )
    generator = ResidualGenerator(
        latent_size=config.latent_size,
        num_classes=data.num_classes,
        widths=widths[::-1],
        image_channels=channels,
    )
    with isolated_rng(config.seed):  # the other weights are the same with and without quantization
        quantizers = {i: make_quantizer(widths[i]) for i in config.fq_layers} if make_quantizer else {}
    discriminator = ResidualDiscriminator(
        num_classes=data.num_classes,
        widths=widths,
        down=tuple(i < doublings for i in range(blocks)),
        image_channels=channels,
        quantizers=quantizers,
    )
    return Networks(
        generator.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        discriminator.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
    )
