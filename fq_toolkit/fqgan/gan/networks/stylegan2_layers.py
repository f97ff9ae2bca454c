"""The layers of StyleGAN2, written from the formulas of the papers, in plain torch.

StyleGAN2: arXiv 1912.04958. Equalized learning rate and the minibatch deviation: arXiv 1710.10196.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

# Leaky ReLU with slope 0.2 halves the power of its input, roughly; this gain keeps it.
SLOPE, GAIN = 0.2, math.sqrt(2)
TAPS = (1.0, 3.0, 3.0, 1.0)


def smoothing_kernel() -> Tensor:
    """Return the binomial filter [1, 3, 3, 1] in two dimensions, (4, 4), with sum 1."""
    taps = torch.tensor(TAPS)
    return torch.outer(taps, taps) / taps.sum() ** 2


def upfirdn(
    x: Tensor, kernel: Tensor, *, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)
) -> Tensor:
    """Upsample, filter and downsample: ``subsample(kernel * pad(insert_zeros(x)))``, ``*`` a convolution.

    Args:
        x: (B, C, H, W).
        kernel: (k, k).
        up: every pixel becomes the upper left corner of ``up x up``, the others zero.
        down: keep every ``down``-th row and column of the result.
        pad: rows and columns of zeros that are added before and after.

    Returns:
        (B, C, (H up + sum(pad) - k) // down + 1, and so for W).
    """
    batch, channels, height, width = x.shape
    if up > 1:
        x = functional.pad(x[:, :, :, None, :, None], (0, up - 1, 0, 0, 0, up - 1))
        x = x.reshape(batch, channels, height * up, width * up)
    x = functional.pad(x, (*pad, *pad))
    # Torch's convolutions do not flip the kernel, the definition does.
    weight = kernel.to(x.dtype).flip((0, 1)).expand(channels, 1, *kernel.shape)
    return functional.conv2d(x, weight, stride=down, groups=channels)


def activate(x: Tensor) -> Tensor:
    """Return ``sqrt(2) leaky_relu(x)`` with slope 0.2."""
    return functional.leaky_relu(x, SLOPE) * GAIN


class EqualizedLinear(nn.Module):
    """A linear layer ``x W^T g + b m`` with ``W`` from N(0, 1 / m^2) and ``g = m / sqrt(inputs)``.

    The scale is part of the forward instead of the weights, so that Adam's steps are equally large relative
    to the weights of all layers.

    Source: arXiv 1710.10196, section 4.1.

    Args:
        inputs: entries that come in.
        outputs: entries that go out.
        bias: what the bias starts at.
        lr_multiplier: m; the layer learns m times as fast as the others.
        activation: apply the leaky ReLU.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: float = 0.0,
        lr_multiplier: float = 1.0,
        activation: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((outputs,), bias / lr_multiplier))
        self.gain, self.lr_multiplier, self.activation = (
            lr_multiplier / math.sqrt(inputs),
            lr_multiplier,
            activation,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs) to (B, outputs)."""
        x = functional.linear(x, self.weight * self.gain, self.bias * self.lr_multiplier)
        return activate(x) if self.activation else x


class EqualizedConv(nn.Module):
    """A same-size convolution with equalized learning rate; with ``down`` it smooths and halves the size.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        kernel: 1 or 3.
        down: halve height and width.
        activation: add a bias and apply the leaky ReLU.
    """

    smoothing: Tensor

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, down: bool = False, activation: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if activation else None
        self.gain, self.kernel, self.down = 1 / math.sqrt(inputs * kernel**2), kernel, down
        self.register_buffer("smoothing", smoothing_kernel(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H, W), or to half the height and width."""
        weight, padding = self.weight * self.gain, self.kernel // 2
        if self.down:
            # Padded for both operations at once, so that the filter adds no edge of its own.
            x = upfirdn(x, self.smoothing, pad=(padding + 1, padding + 1))
            x = functional.conv2d(x, weight, self.bias, stride=2)
        else:
            x = functional.conv2d(x, weight, self.bias, padding=padding)
        return x if self.bias is None else activate(x)


class ModulatedConv(nn.Module):
    """A convolution whose weights depend on a style and are normalized for each sample.

    ``w'_oikl = s_i w_oikl`` and ``w''_oikl = w'_oikl / sqrt(sum_ikl w'_oikl^2 + 1e-8)`` with s linear in the
    style. The same follows from scaling the channels of the input by s and dividing those of the output by
    the root, so that one convolution serves the whole batch.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        kernel: 1 or 3.
        style_size: entries of the style.
        demodulate: divide by the root; without it, w' is used.
        up: double height and width: transposed convolution, then smoothing.

    Source: arXiv 1912.04958, equations 1 and 3.
    """

    smoothing: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        style_size: int,
        *,
        demodulate: bool = True,
        up: bool = False,
    ) -> None:
        super().__init__()
        self.scales = EqualizedLinear(style_size, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.gain, self.kernel = 1 / math.sqrt(inputs * kernel**2), kernel
        self.demodulate, self.up = demodulate, up
        self.register_buffer("smoothing", smoothing_kernel() * 4, persistent=False)  # x4: zeros were inserted

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Map x (B, inputs, H, W) for styles (B, style_size) to (B, outputs, H, W), or twice the size."""
        scales, weight = self.scales(style), self.weight * self.gain
        x = x * scales[:, :, None, None]
        if self.up:
            x = functional.conv_transpose2d(x, weight.transpose(0, 1).flip((2, 3)), stride=2)
            x = upfirdn(x, self.smoothing, pad=(1, 1))
        else:
            x = functional.conv2d(x, weight, padding=self.kernel // 2)
        if not self.demodulate:
            return x
        power = scales.square() @ weight.square().sum((2, 3)).t()
        return x * torch.rsqrt(power + 1e-8)[:, :, None, None]


class StyledConv(nn.Module):
    """A modulated 3x3 convolution, noise with a learned strength, a bias and the leaky ReLU.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        style_size: entries of the style.
        up: double height and width.
    """

    def __init__(self, inputs: int, outputs: int, style_size: int, *, up: bool) -> None:
        super().__init__()
        self.conv = ModulatedConv(inputs, outputs, 3, style_size, up=up)
        self.strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Map x (B, inputs, H, W) for styles (B, style_size) to (B, outputs, H, W), or twice the size."""
        x = self.conv(x, style)
        noise = torch.randn_like(x[:, :1])
        return activate(x + self.strength * noise + self.bias[:, None, None])


def group_size(count: int, largest: int = 4) -> int:
    """Return the largest size of equal groups, at most ``largest``, into which ``count`` samples divide.

    Example:
        >>> [group_size(count) for count in (8, 6, 5)]
        [4, 3, 1]
    """
    return next(size for size in range(min(largest, count), 0, -1) if count % size == 0)


def minibatch_deviation(x: Tensor, *, parts: int = 1) -> Tensor:
    """Append a channel with the standard deviation within a group of samples, a mean over all features.

    Groups are neighbours in the batch, of the largest size up to 4 that divides it.

    Args:
        x: (B, C, H, W).
        parts: how many equally large batches are concatenated; no group crosses from one to the next.

    Returns:
        (B, C + 1, H, W).

    Raises:
        ValueError: when the batch does not consist of so many equal parts.

    Source: arXiv 1710.10196, section 3.
    """
    batch, _, height, width = x.shape
    if batch % parts:
        raise ValueError(f"a batch of {batch} does not consist of {parts} equal parts")
    size = group_size(batch // parts)
    groups = x.reshape(batch // size, size, -1)
    # The offset keeps the gradient of the root finite where all samples are equal.
    deviation = (groups.var(1, unbiased=False) + 1e-8).sqrt().mean(1)
    channel = deviation.repeat_interleave(size)[:, None, None, None].expand(-1, 1, height, width)
    return torch.cat([x, channel], 1)
