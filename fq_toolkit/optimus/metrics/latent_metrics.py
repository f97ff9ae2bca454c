"""How much of a latent space is in use: mutual information and active units.

Source: arXiv 2004.04092, section 4.1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fq_toolkit.layers.checks import at_least_one
from fq_toolkit.optimus.model.posterior import Posterior


def mutual_information(
    posterior: Posterior,
    *,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    chunk: int = 512,
) -> float:
    """``I_q(x; z) = E log q(z|x) - E log q(z)`` in nats, with ``q(z) = 1/N sum_n q(z|x_n)``.

    One z is drawn per sentence, and the same one is in both terms.  It is 0 where all posteriors are the
    same, and never above log N, which it reaches where they do not overlap: compare figures of the same N.

    Args:
        posterior: of N sentences, (N, nz); not of a part of them, as the aggregate is over all.
        generator: source of the draws.
        noise: standard normal numbers (N, nz) that the draws are made of instead.
        chunk: draws that are compared with all N at once.

    Returns:
        The estimate.
    """
    at_least_one("chunk", chunk)
    mean, logvar = posterior.mean.double(), posterior.logvar.double()
    exact = Posterior(mean - mean.mean(0), logvar)  # MI knows no place, and small numbers round better
    z = exact.sample(generator) if noise is None else exact.mean + exact.std * noise.to(mean)
    parts = []
    for start in range(0, z.shape[0], chunk):
        density = _log_densities(z[start : start + chunk], exact)
        # Of the same matrix, so that both terms are rounded alike.
        parts.append(density.diagonal(start) - density.logsumexp(1))
    return float(torch.cat(parts).mean()) + math.log(z.shape[0])


def active_units(posterior: Posterior, *, threshold: float = 0.01) -> int:
    """Dimensions whose posterior mean has a variance over the sentences above the threshold.

    Args:
        posterior: of N sentences, (N, nz), N at least 2.
        threshold: of the variance (the one with N - 1).

    Returns:
        Their number, between 0 and nz.

    Example:
        >>> import torch
        >>> mean = torch.tensor([[0.0, 1.0], [0.0, -1.0]])
        >>> active_units(Posterior(mean, torch.zeros(2, 2)))
        1
    """
    if posterior.mean.shape[0] < 2:
        raise ValueError("active units are counted over at least two sentences, got one")
    return int((posterior.mean.double().var(0) > threshold).sum())


def _log_densities(z: Tensor, posterior: Posterior) -> Tensor:
    """``log N(z_m; mean_n, var_n)`` for each of M latents (M, nz) and N posteriors: (M, N).

    The square is multiplied out, so that it is two products of matrices and M x N x nz never exists.
    """
    mean, logvar = posterior
    precision = (-logvar).exp()
    offset = (mean.square() * precision + logvar).sum(1) + mean.shape[1] * math.log(2 * math.pi)
    return -0.5 * (z.square() @ precision.T - 2 * z @ (mean * precision).T + offset)
