"""The Gaussian that the encoder makes of a sentence."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_LOG_TWO_PI = math.log(2 * math.pi)


class Posterior(NamedTuple):
    """The posterior ``q(z|x) = N(mean, exp(logvar))`` of each sentence, with a diagonal covariance.

    Source: arXiv 2004.04092, section 3.1; the prior is N(0, I).

    Attributes:
        mean: (B, nz).
        logvar: (B, nz), the logarithm of the variance.

    Example:
        >>> import torch
        >>> q = Posterior(torch.zeros(2, 3), torch.zeros(2, 3))
        >>> q.sample().shape, q.kl().sum().item()
        (torch.Size([2, 3]), 0.0)
    """

    mean: Tensor
    logvar: Tensor

    @property
    def std(self) -> Tensor:
        """Return the standard deviation (B, nz)."""
        return (0.5 * self.logvar).exp()

    def sample(self, generator: torch.Generator | None = None, *, count: int | None = None) -> Tensor:
        """Draw ``z = mean + std * noise`` with standard normal noise, differentiable in mean and logvar.

        Args:
            generator: source of the noise; torch's global one by default.
            count: draws per sentence.

        Returns:
            (B, nz), or (count, B, nz).
        """
        shape = self.mean.shape if count is None else (count, *self.mean.shape)
        place = self.mean.device if generator is None else generator.device
        noise = torch.randn(shape, generator=generator, device=place, dtype=self.mean.dtype)
        return self.mean + self.std * noise.to(self.mean.device)

    def kl(self) -> Tensor:
        """Compute ``KL(q(z_i|x) || N(0, 1)) = (mean^2 + var - logvar - 1) / 2`` in nats, (B, nz).

        Source: arXiv 2004.04092, section 3, the regularizer of equation 4.
        """
        # expm1, as var - 1 cancels where the posterior is close to the prior: the KL would come out below 0.
        return 0.5 * (self.mean.square() + torch.expm1(self.logvar) - self.logvar)

    def log_prob(self, z: Tensor) -> Tensor:
        """Compute ``log q(z|x) = -sum_i ((z_i - mean_i)^2 / var_i + logvar_i + log 2 pi) / 2`` in nats.

        Args:
            z: (..., B, nz).

        Returns:
            (..., B).
        """
        scaled = (z - self.mean) * (-0.5 * self.logvar).exp()
        return -0.5 * (scaled.square() + self.logvar + _LOG_TWO_PI).sum(-1)


def prior_log_prob(z: Tensor) -> Tensor:
    """Compute ``log N(z; 0, I)`` in nats of latents (..., nz), as (...)."""
    return -0.5 * (z.square() + _LOG_TWO_PI).sum(-1)
