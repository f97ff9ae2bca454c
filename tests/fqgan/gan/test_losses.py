"""The losses and penalties of GANs, by hand."""

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from fq_toolkit.fqgan.gan.losses import (
    PathLengthPenalty,
    hinge_discriminator_loss,
    hinge_generator_loss,
    logistic_discriminator_loss,
    logistic_generator_loss,
    r1_penalty,
)


def test_hinge_losses() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.5])
    assert float(hinge_discriminator_loss(real, fake)) == pytest.approx(0.25 + 0.75)
    assert float(hinge_generator_loss(fake)) == pytest.approx(0.75)


def test_logistic_losses() -> None:
    real, fake = torch.tensor([2.0, -1.0], dtype=torch.double), torch.tensor([0.5, -3.0], dtype=torch.double)
    sigmoid = torch.sigmoid
    expected = -sigmoid(real).log().mean() - (1 - sigmoid(fake)).log().mean()
    torch.testing.assert_close(logistic_discriminator_loss(real, fake), expected)
    torch.testing.assert_close(logistic_generator_loss(fake), -sigmoid(fake).log().mean())


def test_r1_by_hand() -> None:
    """D(x) = a . x^2 / 2 has the gradient a x, and its penalty the gradient 2 mean(a x^2) in a."""
    a = torch.rand(4, dtype=torch.double, requires_grad=True)
    x = torch.randn(3, 1, 2, 2, dtype=torch.double)
    flat = x.flatten(1)
    penalty = r1_penalty(lambda images, _: images.flatten(1).square() @ a / 2, x, torch.zeros(3))
    torch.testing.assert_close(penalty, (a * flat).square().sum(1).mean())
    penalty.backward()
    torch.testing.assert_close(a.grad, (2 * a * flat.square()).mean(0).detach())


def test_path_penalty_keeps_a_moving_average() -> None:
    """A linear generator: the length is known, the average moves by one part in a hundred."""
    matrix = torch.randn(16, 5, dtype=torch.double)

    def generator(z: Tensor, labels: Tensor, with_styles: bool) -> tuple[Tensor, Tensor]:
        styles = z[:, None].repeat(1, 3, 1).requires_grad_()
        return (styles.mean(1) @ matrix.t()).unflatten(1, (1, 4, 4)), styles

    penalty = PathLengthPenalty(Accelerator(cpu=True))
    penalty.average = penalty.average.double()
    z, average = torch.randn(4, 5, dtype=torch.double), torch.tensor(0.0, dtype=torch.double)
    for seed in range(2):
        torch.manual_seed(seed)
        value = penalty(generator, z, torch.zeros(4))
        torch.manual_seed(seed)
        y = torch.randn(4, 1, 4, 4, dtype=torch.double).flatten(1) / 4
        # Every one of three styles moves the image by a third.
        lengths = ((y @ matrix / 3).square().sum(1)).sqrt()
        average = average + 0.01 * (lengths.mean() - average)
        torch.testing.assert_close(penalty.average, average)
        torch.testing.assert_close(value, (lengths - average).square().mean())
