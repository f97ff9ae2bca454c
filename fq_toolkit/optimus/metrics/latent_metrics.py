"""Measures of how much of a latent space is used: mutual information and active units.

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
    analytic: bool = False,
    chunk: int = 512,
) -> float:
    """Estimate ``I_q(x; z) = E log q(z|x) - E log q(z)`` in nats, with ``q(z) = 1/N sum_n q(z|x_n)``.

    One z is drawn for each sentence and used in both terms. The estimate is 0 when all posteriors are equal,
    and at most log N, when none overlap: compare only figures of the same N.

    With ``analytic`` the first term is exact instead, ``-sum_i (1 + log 2 pi + logvar_i) / 2``, as in the
    release of Optimus and of He et al. Both have the same mean. But the errors of the draws no longer cancel
    between the terms: figures scatter more, and equal posteriors give a figure around 0.

    Source: arXiv 2004.04092, section 4.1 (MI), after He et al. (2019), arXiv 1901.05534; the release takes
    the aggregate posterior of one batch.

    Args:
        posterior: of all N sentences, (N, nz).
        generator: source of the draws.
        noise: standard normal numbers (N, nz) for the draws instead.
        analytic: compute ``E log q(z|x)`` in closed form.
        chunk: draws that are compared with all N at once; bounds the memory.

    Returns:
        The estimate.
    """
    at_least_one("chunk", chunk)
    mean, logvar = posterior.mean.double(), posterior.logvar.double()
    exact = Posterior(mean - mean.mean(0), logvar)  # a shift leaves MI as it is, and small numbers round less
    z = exact.sample(generator) if noise is None else exact.mean + exact.std * noise.to(mean)
    parts = []
    for start in range(0, z.shape[0], chunk):
        density = _log_densities(z[start : start + chunk], exact)
        # Both terms come from one matrix, so that their rounding errors cancel.
        own = density.diagonal(start)
        if analytic:
            own = -0.5 * (1 + math.log(2 * math.pi) + logvar[start : start + chunk]).sum(1)
        parts.append(own - density.logsumexp(1))
    return float(torch.cat(parts).mean()) + math.log(z.shape[0])


def active_units(posterior: Posterior, *, threshold: float = 0.01) -> int:
    """Count the dimensions that are in use: ``Var_x(E_q(z_i|x)[z_i]) > threshold``.

    Source: arXiv 2004.04092, section 4.1 (AU), after Burda et al. (2016), arXiv 1509.00519.

    Args:
        posterior: of N sentences, (N, nz), N at least 2.
        threshold: of the unbiased variance.

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
    """Compute ``log N(z_m; mean_n, var_n)`` of M latents (M, nz) under N posteriors, as (M, N)."""
    # (z - mean)^2 / var multiplied out: two matrix products, and no tensor of M x N x nz.
    mean, logvar = posterior
    precision = (-logvar).exp()
    offset = (mean.square() * precision + logvar).sum(1) + mean.shape[1] * math.log(2 * math.pi)
    return -0.5 * (z.square() @ precision.T - 2 * z @ (mean * precision).T + offset)
