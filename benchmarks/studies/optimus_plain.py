"""The reference of the Optimus study: the same decoder without a latent, trained in the same way."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fq_toolkit.optimus.data.corpus import load_corpus
from fq_toolkit.optimus.data.tokenized import TokenizedTexts, tokenize_corpus
from fq_toolkit.optimus.model.decoding import evaluating
from fq_toolkit.optimus.model.losses import token_nll
from fq_toolkit.optimus.tasks.vae.config import OptimusConfig
from fq_toolkit.optimus.tasks.vae.training import build_vae, data_order, learning_rate, make_optimizer
from fq_toolkit.training.seeding import seed_everything

_ROWS = 64


def train_plain(config: OptimusConfig) -> dict[str, float]:
    """Train the decoder alone on what the VAEs are trained on, in the same order and for as many steps.

    Args:
        config: of the VAE whose decoder it is.

    Returns:
        Metric -> value on the held-out sentences.
    """
    seed_everything(config.seed)
    corpus = load_corpus(config.data, config.valid, limit=config.limit)
    vae = build_vae(config, corpus.train)
    decoder, tokenizers = vae.decoder, vae.tokenizers
    decoder.latent_injection.requires_grad_(False)  # without a latent it computes nothing
    data = tokenize_corpus(corpus.train, tokenizers, max_length=config.max_length)
    order = data_order(config, data, rank=0, world=1)
    optimizer = make_optimizer(decoder, config)
    decoder.train()
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        optimizer.zero_grad()
        nll(decoder, data, order.next()).mean().backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), config.clip)
        optimizer.step()
    every = max(1, len(corpus.valid) // config.eval_sentences)
    texts = corpus.valid[::every][: config.eval_sentences]
    held_out = tokenize_corpus(texts, tokenizers, max_length=config.max_length)
    kept = [t for t in texts if len(tokenize_corpus([t], tokenizers, max_length=config.max_length))]
    with evaluating(decoder):
        parts = torch.arange(len(held_out)).split(_ROWS)
        total = sum(float(nll(decoder, held_out, rows).double().sum()) for rows in parts)
    tokens, words = int(held_out.lengths().sum()), sum(len(text.split()) + 1 for text in kept)
    return {
        "sentences": float(len(held_out)),
        "-ELBO": total / len(held_out),  # exact here: there is no latent
        "PPL per BPE token": math.exp(total / tokens),
        "PPL per word": math.exp(total / words),
    }


def nll(decoder: torch.nn.Module, data: TokenizedTexts, rows: Tensor) -> Tensor:
    """``-log p(x)`` of sentences, (B,)."""
    batch = data.batch(rows)
    logits = decoder(input_ids=batch.decoder_ids[:, :-1], attention_mask=batch.decoder_mask[:, :-1]).logits
    return token_nll(logits, batch.decoder_ids[:, 1:], batch.decoder_mask[:, 1:])
