"""The losses of U-GAT-IT are what the paper says."""

import numpy as np
import pytest
import torch

from fq_toolkit.fqgan.ugatit.losses import (
    adversarial_loss,
    attention_loss,
    critic_loss,
    cycle_loss,
    identity_loss,
)
from fq_toolkit.fqgan.ugatit.networks import Judgement, Round, Translation


def test_losses_are_what_the_paper_says() -> None:
    random = np.random.default_rng(0)
    raw = [(random.normal(size=(4, 1, 3, 3)), random.normal(size=(4, 2))) for _ in range(4)]
    judgements = [Judgement(*map(torch.from_numpy, pair)) for pair in raw]
    flat = [part for pair in raw for part in pair]
    expected = sum(((part[2:] - 1) ** 2).mean() + (part[:2] ** 2).mean() for part in flat)
    assert float(critic_loss(judgements)) == pytest.approx(expected, rel=1e-6)
    assert float(adversarial_loss(judgements)) == pytest.approx(
        sum(((part - 1) ** 2).mean() for part in flat), rel=1e-6
    )
    images = [torch.from_numpy(random.normal(size=(2, 1, 4, 4))).float() for _ in range(8)]
    logits = [torch.from_numpy(random.normal(size=(2, 2))).float() for _ in range(4)]
    made = [Translation(image, logit, image) for image, logit in zip(images, logits, strict=False)]
    trip = Round(made[0], made[1], images[4], images[5], made[2], made[3])
    a, b = images[6], images[7]
    assert float(cycle_loss(trip, a, b)) == pytest.approx(
        float((images[4] - a).abs().mean() + (images[5] - b).abs().mean())
    )
    assert float(identity_loss(trip, a, b)) == pytest.approx(
        float((made[3].images - a).abs().mean() + (made[2].images - b).abs().mean())
    )
    source, target = torch.cat(logits[:2]).sigmoid(), torch.cat(logits[2:]).sigmoid()
    assert float(attention_loss(trip)) == pytest.approx(
        float(-2 * source.log().mean() - 2 * (1 - target).log().mean()), rel=1e-5
    )
