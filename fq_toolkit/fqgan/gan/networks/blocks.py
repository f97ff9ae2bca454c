"""Residual blocks of class-conditional GANs (BigGAN, arXiv 1809.11096; SN-GAN, arXiv 1802.05957)."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fq_toolkit.fqgan.gan.networks.spectral import spectral_norm

# How weights are initialized: a function that changes a module in place and returns it.
Start = Callable[[nn.Module], nn.Module]
# (channels in, channels out, size of the kernel) -> a convolution that keeps height and width.
MakeConv = Callable[[int, int, int], nn.Module]


def orthogonal(module: nn.Module) -> nn.Module:
    """Draw orthogonal weights for a module and set its bias to zero; return the module."""
    nn.init.orthogonal_(module.weight)  # type: ignore[arg-type]
    return zero_bias(module)


def normal(module: nn.Module) -> nn.Module:
    """Draw the weights of a module from N(0, 0.02^2) and set its bias to zero; return the module."""
    nn.init.normal_(module.weight, std=0.02)  # type: ignore[arg-type]
    return zero_bias(module)


def zero_bias(module: nn.Module) -> nn.Module:
    """Set the bias to zero where there is one; return the module."""
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    return module


STARTS: dict[Literal["orthogonal", "normal"], Start] = {"orthogonal": orthogonal, "normal": normal}


def normalized(module: nn.Module, start: Start = orthogonal) -> nn.Module:
    """Return the module, initialized anew, with spectral norm: one power iteration per training forward.

    Source: arXiv 1802.05957, Algorithm 1.
    """
    return spectral_norm(start(module))


def plain_conv(inputs: int, outputs: int, kernel: int) -> nn.Module:
    """Return a same-size convolution with orthogonal weights."""
    return orthogonal(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2))


def sn_conv(
    inputs: int, outputs: int, kernel: int, *, start: Start = orthogonal, bias: bool = True
) -> nn.Module:
    """Return a same-size convolution with spectral norm."""
    return normalized(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias), start)


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose gain and bias depend on the class: ``(1 + gain[y]) * normalize(x) + bias[y]``.

    Args:
        channels: C.
        num_classes: number of classes.
        start: how gain and bias start; None for zeros, which is a plain batch norm.
    """

    def __init__(self, channels: int, num_classes: int, *, start: Start | None = None) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.modulation = nn.Embedding(num_classes, 2 * channels)
        if start is None:
            nn.init.zeros_(self.modulation.weight)
        else:
            start(self.modulation)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Normalize x (B, C, H, W) for labels int64 (B,)."""
        gain, bias = self.modulation(labels)[:, :, None, None].chunk(2, dim=1)
        return modulate(self.norm(x), gain, bias)


class VectorBatchNorm(nn.Module):
    """Batch norm whose gain and bias are linear in a condition: ``(1 + U v) * normalize(x) + W v``.

    Args:
        channels: C.
        condition_size: entries of v.
        start: how U and W start. Both have spectral norm and no bias, as in BigGAN.
    """

    def __init__(self, channels: int, condition_size: int, *, start: Start) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain = normalized(nn.Linear(condition_size, channels, bias=False), start)
        self.bias = normalized(nn.Linear(condition_size, channels, bias=False), start)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Normalize x (B, C, H, W) for conditions (B, condition_size)."""
        gain, bias = (layer(condition)[:, :, None, None] for layer in (self.gain, self.bias))
        return modulate(self.norm(x), gain, bias)


def modulate(normalized: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """Return ``(1 + gain) * normalized + bias``."""
    return normalized + normalized * gain + bias


class GeneratorBlock(nn.Module):
    """Norm, ReLU, upsample x2, conv 3x3, norm, ReLU, conv 3x3; the shortcut upsamples and mixes channels.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        make_norm: channels -> norm that is called with features and condition.
        make_conv: makes the convolutions.
    """

    def __init__(
        self, inputs: int, outputs: int, make_norm: Callable[[int], nn.Module], make_conv: MakeConv
    ) -> None:
        super().__init__()
        self.norm1 = make_norm(inputs)
        self.conv1 = make_conv(inputs, outputs, 3)
        self.norm2 = make_norm(outputs)
        self.conv2 = make_conv(outputs, outputs, 3)
        self.shortcut = make_conv(inputs, outputs, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map x (B, inputs, H, W) to (B, outputs, 2 H, 2 W); the condition goes to both norms."""
        hidden = functional.interpolate(functional.relu(self.norm1(x, condition)), scale_factor=2.0)
        hidden = self.conv1(hidden)
        hidden = self.conv2(functional.relu(self.norm2(hidden, condition)))
        # A 1x1 convolution and nearest upsampling commute; this order is four times cheaper.
        return hidden + functional.interpolate(self.shortcut(x), scale_factor=2.0)


class DiscriminatorBlock(nn.Module):
    """ReLU, conv 3x3, ReLU, conv 3x3, pooling x2 if ``down``; the shortcut is 1x1 where shapes change.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        down: halve height and width.
        first: the block that sees the image: no ReLU before its first convolution.
        start: how the weights start.
    """

    def __init__(
        self, inputs: int, outputs: int, *, down: bool, first: bool = False, start: Start = orthogonal
    ) -> None:
        super().__init__()
        self.down, self.first = down, first
        conv = partial(sn_conv, start=start)
        self.conv1 = conv(inputs, outputs, 3)
        self.conv2 = conv(outputs, outputs, 3)
        self.shortcut = conv(inputs, outputs, 1) if down or inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, inputs, H, W) to (B, outputs, H, W), or to half the height and width."""
        hidden = self.conv1(x if self.first else functional.relu(x))
        hidden = self.conv2(functional.relu(hidden))
        if not self.down:
            return hidden + self.shortcut(x)
        # Pooling and a 1x1 convolution commute as well.
        return functional.avg_pool2d(hidden, 2) + self.shortcut(functional.avg_pool2d(x, 2))


class SelfAttention(nn.Module):
    """Attention of every position to a grid of half the size, added with a gain that starts at zero.

    ``y = x + gamma o(softmax(theta(x)^T phi(x)) g(x))``

    with 1x1 convolutions: theta and phi to C/8 channels, g to C/2, o back to C; phi and g are max-pooled.

    Args:
        channels: C.
        start: how the weights start.

    Source: SA-GAN, arXiv 1805.08318, as BigGAN uses it.
    """

    def __init__(self, channels: int, *, start: Start = orthogonal) -> None:
        super().__init__()
        narrow, half = max(1, channels // 8), max(1, channels // 2)
        conv = partial(sn_conv, start=start, bias=False)
        self.theta, self.phi = conv(channels, narrow, 1), conv(channels, narrow, 1)
        self.g, self.o = conv(channels, half, 1), conv(half, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, H, W), H and W even, to the same shape."""
        queries = self.theta(x).flatten(2).transpose(1, 2)
        keys = functional.max_pool2d(self.phi(x), 2).flatten(2)
        values = functional.max_pool2d(self.g(x), 2).flatten(2).transpose(1, 2)
        attended = torch.softmax(queries @ keys, dim=-1) @ values
        return x + self.gamma * self.o(attended.transpose(1, 2).unflatten(2, x.shape[2:]))
