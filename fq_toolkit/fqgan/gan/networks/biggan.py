"""BigGAN for 32, 64, 128 and 256 pixels (arXiv 1809.11096)."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fq_toolkit.fqgan.gan.config import FQGANConfig
from fq_toolkit.fqgan.gan.networks.blocks import (
    STARTS,
    ConditionalBatchNorm,
    GeneratorBlock,
    SelfAttention,
    Start,
    VectorBatchNorm,
    normalized,
    sn_conv,
)
from fq_toolkit.fqgan.gan.networks.residual import (
    ImageShape,
    MakeQuantizer,
    Networks,
    ResidualDiscriminator,
    block_numbers,
    make_quantizers,
)
from fq_toolkit.fqgan.gan.networks.spectral import look_at_singular_values
from fq_toolkit.training.errors import ConfigError


class Widths(NamedTuple):
    """Channels as multiples of a model's width.

    generator: at 4x4, 8x8, ... up to the image; one block between neighbours.
    discriminator: after each block.
    down: how many of the discriminator's blocks, from the first, halve the size.
    """

    generator: tuple[int, ...]
    discriminator: tuple[int, ...]
    down: int


# Size of the image -> widths, as in the paper's appendix B and the common PyTorch implementation.
WIDTHS = {
    32: Widths((4, 4, 4, 4), (4, 4, 4, 4), 2),
    64: Widths((16, 16, 8, 4, 2), (1, 2, 4, 8, 16), 4),
    128: Widths((16, 16, 8, 4, 2, 1), (1, 2, 4, 8, 16, 16), 5),
    256: Widths((16, 16, 8, 8, 4, 2, 1), (1, 2, 4, 8, 8, 16, 16), 6),
}


class BigGANGenerator(nn.Module):
    """Linear -> 4x4 -> residual blocks with spectral norm, each twice the size -> norm, ReLU, conv, tanh.

    Every batch norm depends on the class: through a table of its own, or, with ``shared_size``, linearly on
    one embedding that all share. With ``hierarchical`` noise z is cut into equal parts: the first makes the
    4x4 map, and each block's embedding is joined by one of the others.

    Source: arXiv 1809.11096, section 3 and appendix B.

    Args:
        latent_size: size of z.
        num_classes: number of classes.
        widths: channels at 4x4, 8x8, ...; one block between neighbours.
        image_channels: channels of the image.
        shared_size: entries of the shared class embedding; 0 for none.
        hierarchical: cut z into parts.
        attention: sizes in pixels of the maps that get self-attention.
        start: how the weights start.

    Raises:
        ConfigError: hierarchical noise without a shared embedding, or that cannot be cut into equal parts.
    """

    def __init__(
        self,
        *,
        latent_size: int,
        num_classes: int,
        widths: tuple[int, ...],
        image_channels: int,
        shared_size: int,
        hierarchical: bool,
        attention: tuple[int, ...],
        start: Start,
    ) -> None:
        super().__init__()
        blocks = len(widths) - 1
        parts = blocks + 1 if hierarchical else 1
        if hierarchical and not shared_size:
            raise ConfigError("hierarchical noise joins the shared class embedding; give shared_size too")
        if latent_size % parts:
            raise ConfigError(f"latent_size is {latent_size}; hierarchical noise needs a multiple of {parts}")
        self.latent_size, self.num_classes, self.part_size = latent_size, num_classes, latent_size // parts
        self.hierarchical = hierarchical
        self.shared = start(nn.Embedding(num_classes, shared_size)) if shared_size else None
        self.linear = normalized(nn.Linear(self.part_size, 16 * widths[0]), start)
        make_norm: Callable[[int], nn.Module]
        if shared_size:
            condition_size = shared_size + self.part_size * hierarchical
            make_norm = partial(VectorBatchNorm, condition_size=condition_size, start=start)
        else:
            make_norm = partial(ConditionalBatchNorm, num_classes=num_classes, start=start)
        conv = partial(sn_conv, start=start)
        self.blocks = nn.ModuleList(
            GeneratorBlock(inputs, outputs, make_norm, conv) for inputs, outputs in itertools.pairwise(widths)
        )
        self.attention = nn.ModuleDict(
            {  # block i makes maps of 8 * 2^i pixels
                str(i): SelfAttention(widths[i + 1], start=start)
                for i in range(blocks)
                if 8 * 2**i in attention
            }
        )
        self.norm = nn.BatchNorm2d(widths[-1])
        self.to_image = conv(widths[-1], image_channels, 3)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Map z (B, latent_size) and labels int64 (B,) to images (B, image_channels, H, W) in [-1, 1]."""
        first, *others = z.split(self.part_size, dim=1)
        condition = labels if self.shared is None else self.shared(labels)
        hidden = self.linear(first).unflatten(1, (-1, 4, 4)).contiguous(memory_format=torch.channels_last)
        for i, block in enumerate(self.blocks):
            hidden = block(hidden, torch.cat([condition, others[i]], 1) if self.hierarchical else condition)
            if str(i) in self.attention:
                hidden = self.attention[str(i)](hidden)
        return torch.tanh(self.to_image(functional.relu(self.norm(hidden))))


def build_biggan(config: FQGANConfig, shape: ImageShape, make_quantizer: MakeQuantizer | None) -> Networks:
    """Build both networks.

    Raises:
        ConfigError: when BigGAN has no architecture for the size of the images, or an option does not fit.
    """
    if shape.height != shape.width or shape.height not in WIDTHS:
        raise ConfigError(
            f"images are {shape.height}x{shape.width}; BigGAN is defined for 32x32, 64x64, 128x128 and "
            "256x256: give --image-size 32, 64, 128 or 256"
        )
    table, start = WIDTHS[shape.height], STARTS[config.initial]
    widths = tuple(config.channels * width for width in table.discriminator)
    down = tuple(i < table.down for i in range(len(widths)))
    sizes = [shape.height >> min(i + 1, table.down) for i in range(len(widths))]  # after each block
    maps = {8 << i for i in range(len(table.generator) - 1)}
    if not maps.issuperset(config.attention_sizes):
        raise ConfigError(
            f"attention is {config.attention}; expected 0 or sizes of maps, joined by _: 8, 16, ... "
            f"{shape.height}"
        )
    numbers = block_numbers(config, len(widths))
    generator = BigGANGenerator(
        latent_size=config.latent_size,
        num_classes=shape.num_classes,
        widths=tuple(config.channels * width for width in table.generator),
        image_channels=shape.channels,
        shared_size=config.shared_size,
        hierarchical=config.hierarchical,
        attention=config.attention_sizes,
        start=start,
    )
    discriminator = ResidualDiscriminator(
        num_classes=shape.num_classes,
        widths=widths,
        down=down,
        image_channels=shape.channels,
        quantizers=make_quantizers(config, make_quantizer, {i: widths[i] for i in numbers}),
        # After the block that reaches the size; blocks that keep it have none.
        attention=tuple(i for i, size in enumerate(sizes) if down[i] and size in config.attention_sizes),
        start=start,
    )
    for network in (generator, discriminator):
        look_at_singular_values(network, values=config.singular_values, iterations=config.power_iterations)
    return Networks(generator, discriminator)
