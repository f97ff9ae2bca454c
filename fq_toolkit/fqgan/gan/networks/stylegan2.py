"""StyleGAN2: generator with skip connections, residual discriminator (arXiv 1912.04958, configuration E)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from fq_toolkit.fqgan.gan.config import FQGANConfig
from fq_toolkit.fqgan.gan.networks.residual import (
    ImageShape,
    MakeQuantizer,
    Networks,
    block_numbers,
    make_quantizers,
)
from fq_toolkit.fqgan.gan.networks.stylegan2_layers import (
    EqualizedConv,
    EqualizedLinear,
    ModulatedConv,
    StyledConv,
    minibatch_deviation,
    smoothing_kernel,
    upfirdn,
)
from fq_toolkit.training.errors import ConfigError

MAPPING_LAYERS, MAPPING_LR = 8, 0.01
RUNNING_STYLE_DECAY = 0.995


def stage_widths(channels: int, image_size: int) -> dict[int, int]:
    """Return size of a map -> its channels: ``min(channels, 32 channels / size)``, at least 1.

    With 512 channels these are the widths of configuration E: 512 up to 32x32, 256 at 64x64, 16 at 1024x1024.
    """
    stages = int(math.log2(image_size)) - 1
    return {4 << i: max(1, min(channels, 32 * channels // (4 << i))) for i in range(stages)}


class Mapping(nn.Module):
    """z, and the class if there are several -> style w: normalization, then eight layers as wide as z.

    Args:
        latent_size: size of z and of w.
        num_classes: number of classes; 1 for none.
    """

    def __init__(self, latent_size: int, num_classes: int) -> None:
        super().__init__()
        self.embed = EqualizedLinear(num_classes, latent_size) if num_classes > 1 else None
        inputs = latent_size * (1 + (self.embed is not None))
        self.layers = nn.Sequential(
            *(
                EqualizedLinear(
                    latent_size if i else inputs, latent_size, lr_multiplier=MAPPING_LR, activation=True
                )
                for i in range(MAPPING_LAYERS)
            )
        )

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Map z (B, latent_size) and labels int64 (B,) to w (B, latent_size)."""
        x = normalize_power(z)
        if self.embed is not None:
            one_hot = nn.functional.one_hot(labels, self.embed.weight.shape[1]).to(z.dtype)
            x = torch.cat([x, normalize_power(self.embed(one_hot))], 1)
        return self.layers(x)


def normalize_power(x: Tensor) -> Tensor:
    """Divide each row of x (B, n) by the root of its mean square."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


class StyleGAN2Generator(nn.Module):
    """A learned 4x4 map -> styled convolutions, two for each size; every size adds its part to the image.

    In training mode batches are mixed with a probability: from a random layer on, styles come from other
    noise. Images are not bounded: values outside [-1, 1] are white or black.

    Args:
        latent_size: size of z and of the style w.
        num_classes: number of classes; 1 for none, labels are then ignored.
        widths: size of a map -> channels, from 4 up to the image.
        image_channels: channels of the image.
        mixing: probability that a batch is mixed.

    Attributes:
        running_style: mean of w over training, (latent_size,).
    """

    running_style: Tensor
    smoothing: Tensor

    def __init__(
        self,
        *,
        latent_size: int,
        num_classes: int,
        widths: dict[int, int],
        image_channels: int,
        mixing: float,
    ) -> None:
        super().__init__()
        self.latent_size, self.num_classes, self.mixing = latent_size, num_classes, mixing
        self.mapping = Mapping(latent_size, num_classes)
        sizes = list(widths)
        self.constant = nn.Parameter(torch.randn(1, widths[4], 4, 4))  # the start of every image
        self.convs = nn.ModuleList([StyledConv(widths[4], widths[4], latent_size, up=False)])
        for size in sizes[1:]:
            self.convs.append(StyledConv(widths[size // 2], widths[size], latent_size, up=True))
            self.convs.append(StyledConv(widths[size], widths[size], latent_size, up=False))
        self.to_images = nn.ModuleList(
            ModulatedConv(widths[size], image_channels, 1, latent_size, demodulate=False) for size in sizes
        )
        self.image_biases = nn.ParameterList(torch.zeros(image_channels, 1, 1) for _ in sizes)
        # One style for each convolution; the image of a size has that of the convolution that follows it.
        self.num_styles = len(self.convs) + 1
        self.register_buffer("running_style", torch.zeros(latent_size))
        self.register_buffer("smoothing", smoothing_kernel() * 4, persistent=False)

    def styles(self, z: Tensor, labels: Tensor) -> Tensor:
        """Map noise (B, latent_size) and labels (B,) to one style a layer, (B, num_styles, latent_size)."""
        w = self.mapping(z, labels)
        if self.training:
            with torch.no_grad():
                self.running_style.lerp_(w.mean(0).to(self.running_style.dtype), 1 - RUNNING_STYLE_DECAY)
        styles = w[:, None].expand(-1, self.num_styles, -1)
        # Drawn on the CPU: a number from the device would have to be waited for.
        if self.training and self.mixing and float(torch.rand(())) < self.mixing:
            other = self.mapping(torch.randn_like(z), labels)[:, None]
            first = (
                torch.arange(self.num_styles, device=z.device) < torch.randint(1, self.num_styles, ()).item()
            )
            styles = torch.where(first[:, None], styles, other)
        # In the noise's precision under autocast too: the wrapper of a network returns a converted copy, and
        # there is no gradient of the images with respect to a copy, which the path lengths need.
        return styles.to(z.dtype)

    def synthesize(self, styles: Tensor) -> Tensor:
        """Map styles (B, num_styles, latent_size) to images (B, image_channels, H, W)."""
        x = self.convs[0](self.constant.expand(len(styles), -1, -1, -1), styles[:, 0])
        image = self.to_images[0](x, styles[:, 1]) + self.image_biases[0]
        for i in range(1, len(self.to_images)):
            x = self.convs[2 * i - 1](x, styles[:, 2 * i - 1])
            x = self.convs[2 * i](x, styles[:, 2 * i])
            smaller = upfirdn(image, self.smoothing, up=2, pad=(2, 1))
            image = smaller + self.to_images[i](x, styles[:, 2 * i + 1]) + self.image_biases[i]
        return image

    def forward(self, z: Tensor, labels: Tensor, with_styles: bool = False) -> Any:
        """Map z (B, latent_size) and labels int64 (B,) to images (B, image_channels, H, W).

        Args:
            z: noise.
            labels: classes; ignored when there is only one.
            with_styles: return (images, styles (B, num_styles, latent_size)) instead.
        """
        styles = self.styles(z, labels)
        images = self.synthesize(styles)
        return (images, styles) if with_styles else images

    def truncated(self, z: Tensor, labels: Tensor, psi: float) -> Tensor:
        """Return images from styles that are pulled towards their mean: ``mean + psi (w - mean)``.

        Args:
            z: noise (B, latent_size).
            labels: classes, int64 (B,).
            psi: 1 changes nothing, 0 gives the image of the mean style.
        """
        return self.synthesize(torch.lerp(self.running_style.to(z.dtype), self.styles(z, labels), psi))


class StyleGAN2Block(nn.Module):
    """Conv 3x3, conv 3x3 that halves the size, plus a 1x1 shortcut that does; divided by sqrt(2)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = EqualizedConv(inputs, inputs, 3)
        self.conv2 = EqualizedConv(inputs, outputs, 3, down=True)
        self.shortcut = EqualizedConv(inputs, outputs, 1, down=True, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, inputs, H, W) to (B, outputs, H / 2, W / 2)."""
        return (self.conv2(self.conv1(x)) + self.shortcut(x)) / math.sqrt(2)  # keeps the variance of the sum


class StyleGAN2Discriminator(nn.Module):
    """1x1 from the image, residual blocks down to 4x4, minibatch deviation, conv 3x3, two linear layers.

    After block i the features pass ``quantizers[str(i)]`` if there is one: this is where FQ-GAN acts. With
    several classes the last layer has a score for each, and that of the label counts.

    Args:
        num_classes: number of classes; 1 for none.
        widths: size of a map -> channels, from 4 up to the image.
        image_channels: channels of the image.
        quantizers: block number -> layer from (B, C, H, W) to the same.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        widths: dict[int, int],
        image_channels: int,
        quantizers: dict[int, nn.Module],
    ) -> None:
        super().__init__()
        sizes = sorted(widths, reverse=True)
        self.from_image = EqualizedConv(image_channels, widths[sizes[0]], 1)
        self.blocks = nn.ModuleList(StyleGAN2Block(widths[size], widths[size // 2]) for size in sizes[:-1])
        self.quantizers = nn.ModuleDict({str(i): layer for i, layer in sorted(quantizers.items())})
        self.last_conv = EqualizedConv(widths[4] + 1, widths[4], 3)
        self.linear = EqualizedLinear(16 * widths[4], widths[4], activation=True)
        self.score = EqualizedLinear(widths[4], num_classes)

    def forward(self, images: Tensor, labels: Tensor, parts: int = 1) -> Tensor:
        """Score images.

        Args:
            images: (B, image_channels, H, W).
            labels: classes, int64 (B,).
            parts: how many equally large batches are concatenated; the minibatch deviation does not look from
                one into the next.

        Returns:
            (B,); higher is more real.
        """
        hidden = self.from_image(images)
        for i, block in enumerate(self.blocks):
            hidden = block(hidden)
            if str(i) in self.quantizers:
                hidden = self.quantizers[str(i)](hidden)
        hidden = self.last_conv(minibatch_deviation(hidden, parts=parts))
        scores = self.score(self.linear(hidden.flatten(1)))
        return scores.squeeze(1) if scores.shape[1] == 1 else scores.gather(1, labels[:, None]).squeeze(1)


def build_stylegan2(config: FQGANConfig, shape: ImageShape, make_quantizer: MakeQuantizer | None) -> Networks:
    """Build both networks for square images, 8, 16, 32, ... pixels wide.

    Raises:
        ConfigError: when the images do not fit, or a quantized block does not exist.
    """
    size = shape.height
    if shape.width != size or size < 8 or size & (size - 1):
        raise ConfigError(
            f"images are {(size, shape.width)}; expected square, 8, 16, 32, ... pixels: "
            "give --image-size to scale and cut them"
        )
    widths = stage_widths(config.channels, size)
    outputs = sorted(widths, reverse=True)[1:]  # size after each block of the discriminator
    numbers = block_numbers(config, len(outputs))
    generator = StyleGAN2Generator(
        latent_size=config.latent_size,
        num_classes=shape.num_classes,
        widths=widths,
        image_channels=shape.channels,
        mixing=config.style_mixing,
    )
    discriminator = StyleGAN2Discriminator(
        num_classes=shape.num_classes,
        widths=widths,
        image_channels=shape.channels,
        quantizers=make_quantizers(config, make_quantizer, {i: widths[outputs[i]] for i in numbers}),
    )
    return Networks(generator, discriminator)
