"""The likelihood of a sentence under the whole model: log p(x) by importance sampling.

Source: arXiv 2004.04092, section 4.1, after "Importance Weighted Autoencoders", arXiv 1509.00519, section 3.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fq_toolkit.layers.checks import at_least_one
from fq_toolkit.optimus.model.batch import TextBatch
from fq_toolkit.optimus.model.posterior import Posterior, prior_log_prob


class ImportanceEstimate(NamedTuple):
    """Estimates for a batch from latents drawn from its posteriors.

    Attributes:
        log_px: (B,) the estimate of log p(x) in nats, float64.
        nll: (B,) -log p(x|z) in nats, mean over the draws, float64.
        posterior: mean and logvar (B, nz).
    """

    log_px: Tensor
    nll: Tensor
    posterior: Posterior


def importance_estimate(
    model: Any,
    batch: TextBatch,
    *,
    draws: int = 100,
    rows: int = 64,
    noise: Tensor | None = None,
) -> ImportanceEstimate:
    """Estimate ``log p(x)`` as ``log 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x)`` with K draws ``z_k ~ q(z|x)``.

    On average the estimate is below log p(x), and closer with more draws; with K = 1 it is the ELBO on
    average. No gradients.

    Source: arXiv 1509.00519, section 3 (the bound L_k); arXiv 2004.04092, section 4.1, has K = 100.

    Args:
        model: has ``posterior(encoder_ids, encoder_mask)`` and ``nll(z, decoder_ids, decoder_mask)``, as a
            `SentenceVAE` does; in eval mode.
        batch: B sentences.
        draws: K.
        rows: rows of the decoder's forwards, or B where that is more.
        noise: standard normal numbers for the draws, (K, B, nz); by default from torch's global generator.

    Returns:
        The estimate, the reconstruction and the posterior.
    """
    at_least_one("draws", draws)
    with torch.no_grad():
        q = model.posterior(batch.encoder_ids, batch.encoder_mask)
        size = q.mean.shape[0]
        total = q.mean.new_full((size,), -torch.inf, dtype=torch.float64)
        nll_sum = torch.zeros_like(total)
        noise = torch.randn(draws, *q.mean.shape) if noise is None else noise
        done = 0
        while done < draws:
            count = min(draws - done, max(1, at_least_one("rows", rows) // size))
            z = q.mean + q.std * noise[done : done + count].to(q.mean)
            # Rows of z are draw by draw, as flatten(0, 1) gives them, and so are those of the sentences.
            ids, mask = (tensor.repeat(count, 1) for tensor in (batch.decoder_ids, batch.decoder_mask))
            nll = model.nll(z.flatten(0, 1), ids, mask).view(count, size).double()
            # In logarithms and float64: a sentence of -200 nats is 0 as a float32, and so would be the sum.
            weights = prior_log_prob(z).double() - q.log_prob(z).double() - nll
            total = torch.logaddexp(total, weights.logsumexp(0))
            nll_sum += nll.sum(0)
            done += count
    return ImportanceEstimate(total - math.log(draws), nll_sum / draws, q)
