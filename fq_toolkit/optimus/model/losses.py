"""The loss of a sentence VAE: reconstruction, and a KL term with free bits.

Source: arXiv 2004.04092, equations 4 to 7.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F


class VAEOutput(NamedTuple):
    """What a training step looks at; everything per sentence, so take the mean of ``loss``.

    Attributes:
        loss: (B,) in nats: reconstruction plus beta times KL, as the settings say.
        nll: (B,) sum of the token NLL, the EOS among the tokens.
        kl: (B,) KL to the prior in nats, whole: without free bits and beta.
        tokens: (B,) predicted tokens: those of the sentence and EOS.
    """

    loss: Tensor
    nll: Tensor
    kl: Tensor
    tokens: Tensor


def token_nll(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Sum of the token NLL of each sentence, in nats and float32.

    Args:
        logits: (B, T, vocabulary) for the next token.
        targets: (B, T) the next token.
        mask: (B, T) 1 where it counts.

    Returns:
        (B,).
    """
    each = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return (each.view_as(targets) * mask).sum(1)


def free_bits(kl: Tensor, threshold: float) -> Tensor:
    """KL with the original's dimension-wise threshold: a dimension counts only where its KL is above it.

    ``sum_i KL_i [KL_i > threshold]``, per example: a dimension below the threshold has neither value nor
    gradient.  (``sum_i max(KL_i, threshold)`` has the same gradient and another value.)

    Args:
        kl: (B, nz) in nats.
        threshold: lambda, in nats per dimension; 0 counts everything.

    Returns:
        (B,).

    Example:
        >>> import torch
        >>> free_bits(torch.tensor([[0.25, 0.75, 2.0]]), 0.5).item()
        2.75
    """
    if not threshold >= 0:
        raise ValueError(f"free_bits must be at least 0 nats per dimension, got {threshold}")
    return (kl * (kl > threshold)).sum(1)


def vae_loss(
    nll: Tensor, kl: Tensor, tokens: Tensor, *, beta: float, threshold: float, length_weighted: bool
) -> VAEOutput:
    """``nll + beta KL`` per sentence.

    Args:
        nll: (B,) summed over tokens.
        kl: (B, nz).
        tokens: (B,) predicted tokens, EOS among them and BOS not.
        beta: weight of the KL term.
        threshold: free bits per dimension.
        length_weighted: divide the NLL, and not the KL, by the tokens including BOS and EOS, as the original
            does by ``length_weighted_loss``.

    Returns:
        Loss and parts.

    Raises:
        ValueError: a beta or threshold that is negative or not a number.
    """
    if not beta >= 0:
        raise ValueError(f"beta must be at least 0, got {beta}")
    reconstruction = nll / (tokens + 1) if length_weighted else nll
    return VAEOutput(reconstruction + beta * free_bits(kl, threshold), nll, kl.sum(1), tokens)
