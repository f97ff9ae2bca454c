"""Measures of a sentence VAE as a language model: likelihood, perplexities, and what its latents do.

Source: arXiv 2004.04092, section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fq_toolkit.optimus.metrics.latent_metrics import active_units, mutual_information
from fq_toolkit.optimus.model.batch import TokenRows, as_list, by_length, check_texts, collate, tokenize
from fq_toolkit.optimus.model.decoding import evaluating
from fq_toolkit.optimus.model.importance import importance_estimate
from fq_toolkit.optimus.model.posterior import Posterior
from fq_toolkit.optimus.model.sentence_noise import SentenceNoise

if TYPE_CHECKING:
    from fq_toolkit.optimus.model.sentence_vae import SentenceVAE


class LanguageScores(NamedTuple):
    """Scores of a sentence VAE on a corpus. Likelihoods and KL are means over sentences, in nats.

    Attributes:
        sentences: how many were measured.
        left_out: how many were not measured because they are longer than the model reads.
        tokens: decoder tokens, including BOS and EOS of each sentence.
        words: words between spaces, plus one for the end of each sentence.
        negative_log_likelihood: -log p(x), estimated by importance sampling with K draws.
        negative_elbo: reconstruction + kl.
        reconstruction: -log p(x|z), mean over the draws.
        reconstruction_from_mean: -log p(x|z) for the mean of the sentence's own posterior.
        reconstruction_from_other: the same for the mean of another sentence; as low as the former when the
            decoder ignores the latent.
        kl: KL to the prior.
        mutual_information: between sentence and latent, at most log(sentences).
        mutual_information_analytic: the same with the entropy of posteriors in closed form, as released.
        active_units: dimensions in use.
        ppl_per_bpe_token: the paper's perplexity, ``exp(sum -log p(x) / tokens)``. BOS counts although it is
            not predicted, and the tokens are those of the decoder's tokenizer.
        ppl_per_word: ``exp(sum -log p(x) / words)``. It compares models with different tokenizers, but not
            when words are unknown: an unknown word is easy to predict.
        unknown: share of the decoder's tokens that are the unknown token, from 0 to 1.
        draws: K.
    """

    sentences: int
    left_out: int
    tokens: int
    words: int
    negative_log_likelihood: float
    negative_elbo: float
    reconstruction: float
    reconstruction_from_mean: float
    reconstruction_from_other: float
    kl: float
    mutual_information: float
    mutual_information_analytic: float
    active_units: int
    ppl_per_bpe_token: float
    ppl_per_word: float
    unknown: float
    draws: int


def measure_language(
    vae: SentenceVAE,
    texts: Sequence[str],
    *,
    draws: int = 100,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
) -> LanguageScores:
    """Measure a model on sentences.

    A sentence that is longer than the model reads is left out and counted: truncated, it would be another
    sentence, and its words could not be counted. Each sentence has its own draws, so that batches and order
    change only the rounding.

    Args:
        vae: the model; it keeps its mode.
        texts: sentences, of which the model can read at least two.
        draws: K of the importance sampling.
        batch_size: rows per forward.
        generator: source of the draws.

    Returns:
        All scores.

    Raises:
        ValueError: an empty sentence, or fewer than two sentences that the model can read.
    """
    texts = as_list(texts)
    rows, kept = readable(vae, texts)
    count = len(kept)
    log_px, nll = torch.empty(2, count, dtype=torch.float64)
    mean, logvar = torch.empty(2, count, vae.latent_size)
    order = list(by_length(kept, batch_size))
    # Independent noise for the likelihood and for MI: adding draws to one must not change the other.
    noise, noise_of_mi = SentenceNoise(kept, generator), SentenceNoise(kept, generator)
    with evaluating(vae):
        for group in order:
            batch = collate(_take(rows, group), vae.tokenizers).to(vae.device)
            drawn = noise.normal(group, draws, vae.latent_size)
            estimate = importance_estimate(vae, batch, draws=draws, rows=batch_size, noise=drawn)
            log_px[group], nll[group] = estimate.log_px.cpu(), estimate.nll.cpu()
            mean[group], logvar[group] = (part.cpu() for part in estimate.posterior)
        posterior = Posterior(mean, logvar)
        own, other = (_nll_given(vae, rows, order, z) for z in (mean, mean[noise.others()]))
    (drawn_for_mi,) = noise_of_mi.normal(range(count), 1, vae.latent_size)
    tokens = sum(len(row) for row in rows.decoder)
    words = sum(len(text.split()) + 1 for text in kept)
    unknown_id = vae.tokenizers.decoder.unk_token_id
    unknown = 0 if unknown_id is None else sum(row.count(unknown_id) for row in rows.decoder)
    kl = float(posterior.kl().double().sum(1).mean())
    total = -float(log_px.sum())
    return LanguageScores(
        sentences=count,
        left_out=len(texts) - count,
        tokens=tokens,
        words=words,
        negative_log_likelihood=total / count,
        negative_elbo=float(nll.mean()) + kl,
        reconstruction=float(nll.mean()),
        reconstruction_from_mean=float(own.mean()),
        reconstruction_from_other=float(other.mean()),
        kl=kl,
        mutual_information=mutual_information(posterior, noise=drawn_for_mi),
        mutual_information_analytic=mutual_information(posterior, noise=drawn_for_mi, analytic=True),
        active_units=active_units(posterior),
        ppl_per_bpe_token=_exp(total / tokens),
        ppl_per_word=_exp(total / words),
        unknown=unknown / tokens,
        draws=draws,
    )


def readable(vae: SentenceVAE, texts: Sequence[str]) -> tuple[TokenRows, list[str]]:
    """Return the sentences that are not too long, as token ids and as texts.

    Raises:
        ValueError: an empty sentence, or fewer than two that the model can read.
    """
    texts = check_texts(texts)
    # Truncated to one token more than the model reads, which shows which sentences are too long.
    rows = tokenize(texts, vae.tokenizers, max_length=vae.max_length + 1)
    fits = [
        max(len(read), len(written)) <= vae.max_length
        for read, written in zip(rows.encoder, rows.decoder, strict=True)
    ]
    kept = [number for number, fit in enumerate(fits) if fit]
    if len(kept) < 2:
        raise ValueError(
            f"at least two sentences of up to {vae.max_length} tokens are needed, got {len(kept)}"
        )
    return _take(rows, kept), [texts[number] for number in kept]


def _take(rows: TokenRows, group: Sequence[int]) -> TokenRows:
    """Return some of the rows."""
    return TokenRows([rows.encoder[i] for i in group], [rows.decoder[i] for i in group], 0)


def _nll_given(vae: SentenceVAE, rows: TokenRows, order: list[list[int]], z: Tensor) -> Tensor:
    """Compute ``-log p(x|z)`` of each sentence for the latent in its row of z, (N,) in float64."""
    result = torch.empty(z.shape[0], dtype=torch.float64)
    for group in order:
        batch = collate(_take(rows, group), vae.tokenizers).to(vae.device)
        result[group] = vae.nll(z[group].to(vae.device), batch.decoder_ids, batch.decoder_mask).double().cpu()
    return result


def _exp(value: float) -> float:
    """Return ``exp(value)``; infinity where math.exp would raise an OverflowError."""
    return math.exp(value) if value < 700 else math.inf
