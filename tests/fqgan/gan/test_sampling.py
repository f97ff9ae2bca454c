"""Images from a generator: truncation, ways between noises, statistics of all classes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fq_toolkit.fqgan.gan.sampling import Sampler, interpolation_strips, slerp


@given(seed=st.integers(0, 10**6), dim=st.integers(2, 20), t=st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_slerp_follows_great_circles(seed: int, dim: int, t: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (
        nn.functional.normalize(torch.randn(3, dim, generator=generator, dtype=torch.float64), dim=1)
        for _ in range(2)
    )
    way = slerp(a, b, torch.tensor([0.0, t, 1.0], dtype=torch.float64))
    torch.testing.assert_close(way[:, 0], a)
    torch.testing.assert_close(way[:, 2], b)
    torch.testing.assert_close(way.norm(dim=2), torch.ones(3, 3, dtype=torch.float64))
    whole, part = (2 * ((a - x).norm(dim=1) / 2).clamp(max=1).asin() for x in (b, way[:, 1]))
    torch.testing.assert_close(part, t * whole, rtol=1e-6, atol=1e-6)


def test_slerp_of_the_same_direction_is_a_line() -> None:
    a = torch.tensor([[1.0, 2.0]])
    way = slerp(a, 3 * a, torch.linspace(0, 1, 3))
    torch.testing.assert_close(way[0], torch.tensor([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]]))


class Styled(nn.Module):
    """A generator with styles, as StyleGAN2 has them: paints its noise, pulled by psi."""

    latent_size, num_classes = 4, 1

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        return self.truncated(z, labels, 1.0)

    def truncated(self, z: Tensor, labels: Tensor, psi: float) -> Tensor:
        return (0.1 * psi * z * self.weight).view(-1, 1, 2, 2)


def test_truncation_pulls_styles_where_there_are_styles() -> None:
    torch.manual_seed(0)
    whole = Sampler(Styled())(torch.zeros(5).long())
    torch.manual_seed(0)
    pulled = Sampler(Styled(), truncation=0.5)(torch.zeros(5).long())
    torch.testing.assert_close(pulled, whole / 2)
    strips = interpolation_strips(Sampler(Styled()), torch.zeros(2).long(), steps=3)
    assert strips.shape == (6, 1, 2, 2)
    torch.manual_seed(1)
    ends = Sampler(Styled()).noise(2)
    torch.manual_seed(1)
    again = interpolation_strips(Sampler(Styled()), torch.zeros(2).long(), steps=3)
    torch.testing.assert_close(again[[0, 3]].flatten(1), 0.1 * ends)


class Counted(nn.Module):
    """A generator whose images are their labels' numbers, and which notes what it is asked for."""

    latent_size = 4

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.norm = nn.BatchNorm2d(1, affine=False)
        self.weight = nn.Parameter(torch.zeros(()))
        self.asked: list[Tensor] = []

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        self.asked.append(labels)
        images = (labels / self.num_classes)[:, None, None, None].expand(-1, 1, 2, 2)
        return self.norm(images) if self.training else images


@pytest.mark.parametrize("num_classes", [1, 10, 100, 1000])
def test_statistics_are_those_of_all_classes(num_classes: int) -> None:
    generator = Counted(num_classes)
    Sampler(generator).recalibrate()
    counts = torch.bincount(torch.cat(generator.asked), minlength=num_classes)
    assert counts.min() == counts.max() == 2000 // num_classes
    mean = torch.arange(num_classes).float().mean() / num_classes
    torch.testing.assert_close(generator.norm.running_mean, mean.view(1))


def test_many_images_are_made_in_parts() -> None:
    generator = Counted(1000)
    labels = torch.arange(1000).flip(0)
    images = Sampler(generator.eval())(labels)
    assert torch.equal(images[:, 0, 0, 0], labels / 1000)
    assert max(len(part) for part in generator.asked) <= 250
