"""Losses of U-GAT-IT: least squares, cycle, identity, and the attention that tells domains apart."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fq_toolkit.fqgan.ugatit.networks import Judgement, Round


def widened(x: Tensor) -> Tensor:
    """Return x in float32 when mixed precision left it in 16 bits; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def least_squares(outputs: Tensor, target: float) -> Tensor:
    """Return ``mean((outputs - target)^2)``, a 0-dim tensor.

    Source: LSGAN, arXiv 1611.04076, equation 2.
    """
    return (widened(outputs) - target).square().mean()


def critic_loss(judgements: Sequence[Judgement]) -> Tensor:
    """Return the loss of all discriminators on fake and real images in one batch, the fakes first.

    ``L_lsgan = mean (D(x) - 1)^2 + mean D(G(z))^2`` of the patch scores and the same of the attention logits,
    ``L_cam^D``; summed over global and local discriminators of both domains.

    Args:
        judgements: of every discriminator, on 2 B images.

    Source: U-GAT-IT, arXiv 1907.10830, equations 2 and 6.
    """
    losses = []
    for judgement in judgements:
        for outputs in judgement:
            fake, real = outputs.chunk(2)
            losses += [least_squares(real, 1.0), least_squares(fake, 0.0)]
    return torch.stack(losses).sum()


def adversarial_loss(judgements: Sequence[Judgement]) -> Tensor:
    """Return what the generators lose when their images are not taken for real ones.

    ``mean (D(G(z)) - 1)^2`` of patch scores and attention logits, summed over all discriminators.

    Source: U-GAT-IT, arXiv 1907.10830, equations 2 and 6, their side of the generators.
    """
    return torch.stack([least_squares(out, 1.0) for judgement in judgements for out in judgement]).sum()


def cycle_loss(round_trip: Round, real_a: Tensor, real_b: Tensor) -> Tensor:
    """Return how much images change on the way to the other domain and back, summed over domains.

    ``mean |x - G_BA(G_AB(x))|``

    Source: U-GAT-IT, arXiv 1907.10830, equation 3.
    """
    return functional.l1_loss(widened(round_trip.back_a), real_a) + functional.l1_loss(
        widened(round_trip.back_b), real_b
    )


def identity_loss(round_trip: Round, real_a: Tensor, real_b: Tensor) -> Tensor:
    """Return how much generators change images that are in their target domain already, summed over domains.

    ``mean |x - G_AB(x)|`` for x of B

    Source: U-GAT-IT, arXiv 1907.10830, equation 4.
    """
    return functional.l1_loss(widened(round_trip.same_a.images), real_a) + functional.l1_loss(
        widened(round_trip.same_b.images), real_b
    )


def attention_loss(round_trip: Round) -> Tensor:
    """Return the cross entropy of the generators' attention: source domain 1, target domain 0.

    ``L_cam = -(mean over the source of log eta(x) + mean over the target of log(1 - eta(x)))``, eta the
    sigmoid of the attention logits; summed over both generators.

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
