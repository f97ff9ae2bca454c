"""Residual blocks of class-conditional GANs (BigGAN, arXiv 1809.11096; SN-GAN, arXiv 1802.05957)."""

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm


def orthogonal(module: nn.Module) -> nn.Module:
    """Draw the weights of a module orthogonally, its bias zero; return the module."""
    nn.init.orthogonal_(module.weight)  # type: ignore[arg-type]
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    return module


def normalized(module: nn.Module) -> nn.Module:
    """Return the module, drawn orthogonally, with spectral norm: one power iteration per training forward."""
    return spectral_norm(orthogonal(module))


def sn_conv(inputs: int, outputs: int, kernel: int) -> nn.Module:
    """Return a same-size convolution with spectral norm."""
    return normalized(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2))


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose gain and bias depend on the class: ``(1 + gain[y]) * normalize(x) + bias[y]``.

    Args:
        channels: C.
        num_classes: number of classes.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.modulation = nn.Embedding(num_classes, 2 * channels)
        nn.init.zeros_(self.modulation.weight)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Normalize x (B, C, H, W) for labels int64 (B,)."""
        gain, bias = self.modulation(labels)[:, :, None, None].chunk(2, dim=1)
        normalized = self.norm(x)
        return normalized + normalized * gain + bias


class GeneratorBlock(nn.Module):
    """Norm, ReLU, upsample x2, conv 3x3, norm, ReLU, conv 3x3; the shortcut upsamples and mixes channels."""

    def __init__(self, inputs: int, outputs: int, num_classes: int) -> None:
        super().__init__()
        self.norm1 = ConditionalBatchNorm(inputs, num_classes)
        self.conv1 = orthogonal(nn.Conv2d(inputs, outputs, 3, padding=1))
        self.norm2 = ConditionalBatchNorm(outputs, num_classes)
        self.conv2 = orthogonal(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.shortcut = orthogonal(nn.Conv2d(inputs, outputs, 1))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Map x (B, inputs, H, W) to (B, outputs, 2 H, 2 W)."""
        hidden = functional.interpolate(functional.relu(self.norm1(x, labels)), scale_factor=2.0)
        hidden = self.conv1(hidden)
        hidden = self.conv2(functional.relu(self.norm2(hidden, labels)))
        # A 1x1 convolution and nearest upsampling commute; this order is four times cheaper.
        return hidden + functional.interpolate(self.shortcut(x), scale_factor=2.0)


class DiscriminatorBlock(nn.Module):
    """ReLU, conv 3x3, ReLU, conv 3x3, pooling x2 if ``down``; the shortcut is 1x1 where shapes change.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        down: halve height and width.
        first: the block that sees the image: no ReLU before its first convolution.
    """

    def __init__(self, inputs: int, outputs: int, *, down: bool, first: bool = False) -> None:
        super().__init__()
        self.down, self.first = down, first
        self.conv1 = sn_conv(inputs, outputs, 3)
        self.conv2 = sn_conv(outputs, outputs, 3)
        self.shortcut = sn_conv(inputs, outputs, 1) if down or inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, inputs, H, W) to (B, outputs, H, W), or to half the height and width."""
        hidden = self.conv1(x if self.first else functional.relu(x))
        hidden = self.conv2(functional.relu(hidden))
        if not self.down:
            return hidden + self.shortcut(x)
        # Pooling and a 1x1 convolution commute as well.
        return functional.avg_pool2d(hidden, 2) + self.shortcut(functional.avg_pool2d(x, 2))
