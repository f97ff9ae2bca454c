"""Losses of U-GAT-IT: least squares, cycle, identity, and the attention that tells domains apart."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fq_toolkit.fqgan.ugatit.networks import Judgement, Round


def widened(x: Tensor) -> Tensor:
    """Return what mixed precision left in 16 bits as float32; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def least_squares(outputs: Tensor, target: float) -> Tensor:
    """Return ``mean((outputs - target)^2)``, a 0-dim tensor.

    Source: LSGAN, arXiv 1611.04076.
    """
    return (widened(outputs) - target).square().mean()


def critic_loss(judgements: Sequence[Judgement]) -> Tensor:
    """Return the loss of all discriminators on fake and real images in one batch, the fakes first.

    Scores and attention logits of real images should be 1, those of fakes 0; a mean over each half.

    Args:
        judgements: of every discriminator, on 2 B images.
    """
    losses = []
    for judgement in judgements:
        for outputs in judgement:
            fake, real = outputs.chunk(2)
            losses += [least_squares(real, 1.0), least_squares(fake, 0.0)]
    return torch.stack(losses).sum()


def adversarial_loss(judgements: Sequence[Judgement]) -> Tensor:
    """Return what the generators lose when their images are not taken for real ones."""
    return torch.stack([least_squares(out, 1.0) for judgement in judgements for out in judgement]).sum()


def cycle_loss(round_trip: Round, real_a: Tensor, real_b: Tensor) -> Tensor:
    """Return the mean absolute difference of images and their way there and back, summed over domains."""
    return functional.l1_loss(widened(round_trip.back_a), real_a) + functional.l1_loss(
        widened(round_trip.back_b), real_b
    )


def identity_loss(round_trip: Round, real_a: Tensor, real_b: Tensor) -> Tensor:
    """Return how much generators change images that are already in their target domain, in absolute means."""
    return functional.l1_loss(widened(round_trip.same_a.images), real_a) + functional.l1_loss(
        widened(round_trip.same_b.images), real_b
    )


def attention_loss(round_trip: Round) -> Tensor:
    """Return the cross entropy of the generators' attention: source domain 1, target domain 0.

    Source: U-GAT-IT, arXiv 1907.10830, equation 5.
    """

    def one(source: Tensor, target: Tensor) -> Tensor:
        cross_entropy = functional.binary_cross_entropy_with_logits
        source, target = widened(source), widened(target)
        return cross_entropy(source, torch.ones_like(source)) + cross_entropy(
            target, torch.zeros_like(target)
        )

    return one(round_trip.to_b.logits, round_trip.same_b.logits) + one(
        round_trip.to_a.logits, round_trip.same_a.logits
    )
