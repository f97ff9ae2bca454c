"""Adversarial losses."""

from torch import Tensor
from torch.nn import functional


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
