"""How likely a sentence is under the whole model: log p(x) by importance sampling.

Source: arXiv 2004.04092, section 4.1, after "Importance Weighted Autoencoders", arXiv 1509.00519.
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
    """What is known of a batch after drawing latents from its posteriors.

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
    """``log 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x)`` with K draws from ``q(z|x)``, without gradients.

    On average it is below log p(x), and the closer the more draws; with K = 1 it is the ELBO on average.  The
    sum is taken in logarithms and piece by piece, so that neither a long sentence nor many draws overflow.

    Args:
        model: has ``posterior(encoder_ids, encoder_mask)`` and ``nll(z, decoder_ids, decoder_mask)``, as a
            `SentenceVAE` does; in eval mode.
        batch: B sentences.
        draws: K.
        rows: rows of the decoder's forwards, or B where that is more.
        noise: standard normal numbers that the draws are made of, (K, B, nz); by default of torch's global
            generator.

    Returns:
        Estimate, reconstruction and posterior.
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
            ids, mask = (tensor.repeat(count, 1) for tensor in (batch.decoder_ids, batch.decoder_mask))
            nll = model.nll(z.flatten(0, 1), ids, mask).view(count, size).double()
            weights = prior_log_prob(z).double() - q.log_prob(z).double() - nll
            total = torch.logaddexp(total, weights.logsumexp(0))
            nll_sum += nll.sum(0)
            done += count
    return ImportanceEstimate(total - math.log(draws), nll_sum / draws, q)
