"""The loss of a sentence VAE: reconstruction, and a KL term with free bits.

    L = -E_q log p(x|z) + beta sum_i KL_i [KL_i > lambda],    KL_i = KL(q(z_i|x) || N(0, 1))

Source: arXiv 2004.04092 (Optimus), section 3, equations 4 to 7.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F


class VAEOutput(NamedTuple):
    """The loss of each sentence and its parts; training takes the mean of ``loss``.

    Attributes:
        loss: (B,) in nats: reconstruction plus beta times KL, as the settings say.
        nll: (B,) sum of the token NLL, the EOS among the tokens.
        kl: (B,) KL to the prior in nats, without free bits and beta.
        tokens: (B,) predicted tokens: those of the sentence and EOS.
    """

    loss: Tensor
    nll: Tensor
    kl: Tensor
    tokens: Tensor


def token_nll(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Compute ``-log p(x|z) = -sum_t log p(x_t | x_<t, z)`` of each sentence, in nats and float32.

    Source: arXiv 2004.04092, section 3, the reconstruction term of equation 4.

    Args:
        logits: (B, T, vocabulary) for the next token.
        targets: (B, T) the next token.
        mask: (B, T) 1 where it counts.

    Returns:
        (B,).
    """
    # float32 first: in bf16 the sum over the vocabulary would lose the third digit of every token.
    each = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return (each.view_as(targets) * mask).sum(1)


def free_bits(kl: Tensor, threshold: float) -> Tensor:
    """Compute the KL term with a threshold per dimension: ``sum_i KL_i [KL_i > lambda]``, for each sentence.

    A dimension below the threshold has neither value nor gradient, so that the encoder may use that many nats
    of it for free. This is what the release computes; the paper writes ``sum_i max(lambda, KL_i)``, which has
    the same gradient and another value.

    Source: arXiv 2004.04092, section 3 (dimension-wise thresholding), after the free bits of Kingma et al.
    (2016), arXiv 1606.04934.

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
    """Compute ``-log p(x|z) + beta sum_i KL_i [KL_i > lambda]`` of each sentence.

    With beta 1 and lambda 0 this is the negative ELBO.

    Source: arXiv 2004.04092, section 3, equations 4 to 7.

    Args:
        nll: (B,) summed over tokens.
        kl: (B, nz).
        tokens: (B,) predicted tokens, EOS among them and BOS not.
        beta: weight of the KL term.
        threshold: lambda, the free bits of each dimension in nats.
        length_weighted: divide the NLL, but not the KL, by the number of tokens with BOS and EOS, as the
            release does with ``length_weighted_loss``.

    Returns:
        The loss and its parts.

    Raises:
        ValueError: a beta or threshold that is negative or not a number.
    """
    if not beta >= 0:
        raise ValueError(f"beta must be at least 0, got {beta}")
    # tokens counts EOS and not BOS; the release divides by both.
    reconstruction = nll / (tokens + 1) if length_weighted else nll
    return VAEOutput(reconstruction + beta * free_bits(kl, threshold), nll, kl.sum(1), tokens)
