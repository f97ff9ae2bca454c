"""Losses of GANs: adversarial ones, and the penalties on gradients that StyleGAN2 adds every few steps."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# Weight of the past in the mean path length; arXiv 1912.04958, appendix B.
PATH_DECAY = 0.99
# The penalty on path lengths looks at half a batch, as there: it costs a second backward through G.
PATH_SHARE = 2


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return the hinge loss of the discriminator, a 0-dim tensor.

    ``mean(relu(1 - D(x))) + mean(relu(1 + D(G(z))))``

    Args:
        real: scores (B,) of real images.
        fake: scores (B,) of generated images.

    Source: Geometric GAN, arXiv 1705.02894; BigGAN, arXiv 1809.11096, section 3, trains with it.
    """
    return functional.relu(1 - real).mean() + functional.relu(1 + fake).mean()


def hinge_generator_loss(fake: Tensor) -> Tensor:
    """Return the hinge loss of the generator, a 0-dim tensor: ``-mean(D(G(z)))`` of scores (B,).

    Source: as `hinge_discriminator_loss`.
    """
    return -fake.mean()


def logistic_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return the logistic loss of the discriminator, a 0-dim tensor.

    ``mean(softplus(-D(x))) + mean(softplus(D(G(z))))``

    Args:
        real: scores (B,) of real images.
        fake: scores (B,) of generated images.

    Source: arXiv 1406.2661, equation 1, with D before its sigmoid: ``-log sigmoid(s) = softplus(-s)``.
    """
    return functional.softplus(-real).mean() + functional.softplus(fake).mean()


def logistic_generator_loss(fake: Tensor) -> Tensor:
    """Return the non-saturating loss of the generator, a 0-dim tensor: ``mean(softplus(-D(G(z))))``.

    Source: arXiv 1406.2661, section 3; scores (B,).
    """
    return functional.softplus(-fake).mean()


def r1_penalty(discriminator: Callable[..., Tensor], images: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over real images of the squared gradient of the score, a 0-dim tensor.

    ``mean_b |grad_x D(x_b)|^2``

    Args:
        discriminator: ``D(images, labels) -> scores``.
        images: real images (B, C, H, W).
        labels: their classes, int64 (B,).

    Source: arXiv 1801.04406, equation 9; gamma / 2 is the caller's.
    """
    images = images.detach().requires_grad_()
    scores = discriminator(images, labels)
    (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    # The last bias has no part in this gradient. With weight 0 it has one: processes that average gradients
    # wait for every weight.
    return gradient.square().sum((1, 2, 3)).mean() + 0 * scores.sum()


def path_lengths(generator: Callable[..., Any], z: Tensor, labels: Tensor) -> Tensor:
    """Return how far images move when their styles do, for each sample.

    ``l_b = sqrt(mean over layers of |J_w^T y|^2)`` with y from N(0, 1 / (H W))

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
    # J^T y is the gradient of the scalar (image . y): the Jacobian itself is never made.
    (gradient,) = torch.autograd.grad((images * noise).sum(), styles, create_graph=True)
    return gradient.square().sum(2).mean(1).sqrt() + 0 * images.sum()  # weight 0 as in `r1_penalty`


class PathLengthPenalty:
    """The penalty on uneven path lengths: ``mean_b (l_b - a)^2`` with a moving average a of the lengths.

    Args:
        accelerator: the average is that of all processes.

    Attributes:
        average: a, a 0-dim tensor.

    Source: StyleGAN2, arXiv 1912.04958, equation 4.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.average = torch.zeros((), device=accelerator.device)

    def __call__(self, generator: Callable[..., Any], z: Tensor, labels: Tensor) -> Tensor:
        """Return the penalty, a 0-dim tensor, and move the average; see `path_lengths`."""
        lengths = path_lengths(generator, z, labels)
        mine = lengths.mean()
        everybodys = self.accelerator.reduce(mine.detach().clone(), reduction="mean")
        # The value is that of all processes, the gradient that of this one's part: DDP averages gradients.
        average = torch.lerp(self.average, mine + (everybodys - mine.detach()), 1 - PATH_DECAY)
        self.average = average.detach()
        return (lengths - average).square().mean()
