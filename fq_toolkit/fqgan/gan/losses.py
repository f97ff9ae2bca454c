"""Losses of GANs: adversarial ones, and the penalties on gradients that StyleGAN2 adds every few steps."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

PATH_DECAY = 0.99
# The penalty on path lengths looks at this share of a batch, as in the paper's appendix B.
PATH_SHARE = 2


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return ``mean(relu(1 - D(real))) + mean(relu(1 + D(fake)))``, a 0-dim tensor.

    Args:
        real: scores (B,) of real images.
        fake: scores (B,) of generated images.

    Source: Geometric GAN, arXiv 1705.02894.
    """
    return functional.relu(1 - real).mean() + functional.relu(1 + fake).mean()


def hinge_generator_loss(fake: Tensor) -> Tensor:
    """Return ``-mean(D(fake))``, a 0-dim tensor; scores (B,)."""
    return -fake.mean()


def logistic_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return ``mean(softplus(-D(real))) + mean(softplus(D(fake)))``, a 0-dim tensor.

    Args:
        real: scores (B,) of real images.
        fake: scores (B,) of generated images.

    Source: the discriminator's loss of the first GAN, arXiv 1406.2661, with D before its sigmoid.
    """
    return functional.softplus(-real).mean() + functional.softplus(fake).mean()


def logistic_generator_loss(fake: Tensor) -> Tensor:
    """Return ``mean(softplus(-D(fake)))``, the non-saturating loss, a 0-dim tensor; scores (B,)."""
    return functional.softplus(-fake).mean()


def r1_penalty(discriminator: Callable[..., Tensor], images: Tensor, labels: Tensor) -> Tensor:
    r"""Return the mean over real images of the squared gradient of the score, a 0-dim tensor.

    .. math:: \mathrm{mean}_b \, |\nabla_x D(x_b)|^2

    Args:
        discriminator: ``D(images, labels) -> scores``.
        images: real images (B, C, H, W).
        labels: their classes, int64 (B,).

    Source: arXiv 1801.04406, equation 9; gamma / 2 is the caller's.
    """
    images = images.detach().requires_grad_()
    scores = discriminator(images, labels)
    (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    # Some weights, such as the last bias, have no part in the gradient. With weight 0 they have: processes
    # that average gradients wait for every one.
    return gradient.square().sum((1, 2, 3)).mean() + 0 * scores.sum()


def path_lengths(generator: Callable[..., Any], z: Tensor, labels: Tensor) -> Tensor:
    r"""Return how far images move when their styles do, for each sample.

    .. math:: l_b = \sqrt{\mathrm{mean}_{layers} \, |J_w^T y|^2}, \qquad y \sim N(0, 1 / (H W))

    Args:
        generator: ``G(z, labels, with_styles) -> (images (B, C, H, W), styles (B, layers, size))``.
        z: noise (B, latent_size).
        labels: classes, int64 (B,).

    Returns:
        (B,).

    Source: StyleGAN2, arXiv 1912.04958, equation 4.
    """
    images, styles = generator(z, labels, True)
    height, width = images.shape[2:]
    noise = torch.randn_like(images) / (height * width) ** 0.5
    (gradient,) = torch.autograd.grad((images * noise).sum(), styles, create_graph=True)
    return gradient.square().sum(2).mean(1).sqrt() + 0 * images.sum()


class PathLengthPenalty:
    r"""Mean over samples of :math:`(l_b - a)^2`, where a is the moving average of the mean length.

    Args:
        accelerator: the average is that of all processes.

    Attributes:
        average: a, a 0-dim tensor.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.average = torch.zeros((), device=accelerator.device)

    def __call__(self, generator: Callable[..., Any], z: Tensor, labels: Tensor) -> Tensor:
        """Return the penalty, a 0-dim tensor, and move the average; see :func:`path_lengths`."""
        lengths = path_lengths(generator, z, labels)
        mine = lengths.mean()
        everybodys = self.accelerator.reduce(mine.detach().clone(), reduction="mean")
        average = torch.lerp(self.average, mine + (everybodys - mine.detach()), 1 - PATH_DECAY)
        self.average = average.detach()
        return (lengths - average).square().mean()
