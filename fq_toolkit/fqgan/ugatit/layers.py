"""The two ideas of U-GAT-IT as layers: attention by class activation maps, adaptive layer-instance norm."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

EPS = 1e-5

# In units in the last place of the largest feature: above what the order of a convolution's sums changes,
# below what tells features apart.
ROUNDING = 64


class Attended(NamedTuple):
    """Features after a class activation map.

    features: (B, C, H, W), weighted and mixed.
    logits: (B, 2): of the average-pooled and the max-pooled features; which domain they come from.
    """

    features: Tensor
    logits: Tensor


def shared_maximum(x: Tensor) -> Tensor:
    """Return the maximum over positions, with a gradient that equal maxima share evenly.

    ``amax`` shares it among maxima that are equal to the last bit. Quantized features are the same at many
    positions, but a convolution leaves them equal only up to the rounding of its sums, which depends on
    position and batch size. Maxima that rounding may have set apart therefore count as equal here, so that
    the gradient of a batch is the mean of the gradients of its parts.

    Args:
        x: (B, C, H, W).

    Returns:
        (B, C); the mean of the maxima that count as equal, so ``amax`` up to rounding.
    """
    detached = x.detach()
    top = detached.amax(dim=(2, 3), keepdim=True)
    unit = torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps  # 16 bits are summed in float32
    near = detached >= top - ROUNDING * unit * detached.abs().amax(dim=(1, 2, 3), keepdim=True)
    below = torch.where(near, x - top, 0.0)
    return top[:, :, 0, 0] + below.sum(dim=(2, 3)) / near.sum(dim=(2, 3))


class ClassActivationMap(nn.Module):
    """Attention by class activation: weights that tell domains apart on pooled features weight the features.

    ``logits = (w_avg . avgpool(x), w_max . maxpool(x))`` and
    ``features = act(conv1x1([w_avg * x, w_max * x]))``.

    Args:
        channels: C.
        activation: goes after the 1x1 convolution.

    Source: U-GAT-IT, arXiv 1907.10830, section 2.1.
    """

    def __init__(self, channels: int, activation: nn.Module) -> None:
        super().__init__()
        self.average = nn.Linear(channels, 1, bias=False)
        self.maximum = nn.Linear(channels, 1, bias=False)
        self.mix = nn.Conv2d(2 * channels, channels, 1)
        self.activation = activation

    def forward(self, x: Tensor) -> Attended:
        """Attend to x (B, C, H, W)."""
        # Each weight is looked up once: under spectral norm every look is a power iteration.
        average, maximum = self.average.weight, self.maximum.weight
        logits = torch.cat(
            [functional.linear(x.mean(dim=(2, 3)), average), functional.linear(shared_maximum(x), maximum)],
            1,
        )
        weighted = torch.cat([x * average[0, :, None, None], x * maximum[0, :, None, None]], 1)
        return Attended(self.activation(self.mix(weighted)), logits)


def layer_instance_norm(x: Tensor, rho: Tensor) -> Tensor:
    """Return ``rho * IN(x) + (1 - rho) * LN(x)``.

    IN normalizes every channel of every image, LN every image; variances are biased, eps is 1e-5.

    Args:
        x: (B, C, H, W).
        rho: (C,), in [0, 1].

    Source: U-GAT-IT, arXiv 1907.10830, equation 1.
    """
    by_instance = functional.instance_norm(x, eps=EPS)
    by_layer = functional.layer_norm(x, x.shape[1:], eps=EPS)
    share = rho[:, None, None]
    return share * by_instance + (1 - share) * by_layer


class AdaLIN(nn.Module):
    """Adaptive layer-instance norm: ``gamma * layer_instance_norm(x) + beta``, gamma and beta from outside.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rho = nn.Parameter(torch.full((channels,), 0.9))

    def forward(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        """Normalize x (B, C, H, W), then scale and shift by gamma and beta (B, C)."""
        return layer_instance_norm(x, self.rho) * gamma[:, :, None, None] + beta[:, :, None, None]


class LIN(nn.Module):
    """Layer-instance norm with a gain and a bias of its own.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rho = nn.Parameter(torch.zeros(channels))
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (B, C, H, W)."""
        return layer_instance_norm(x, self.rho) * self.gamma[:, None, None] + self.beta[:, None, None]


@torch.no_grad()
def clip_rho(model: nn.Module) -> None:
    """Put every rho back into [0, 1]; to be called after each update.

    Source: U-GAT-IT, arXiv 1907.10830, equation 1, whose rho is clipped in the update step.
    """
    for module in model.modules():
        if isinstance(module, (AdaLIN, LIN)):
            module.rho.clamp_(0, 1)
