import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from fq_toolkit.fqgan.metrics.frechet import StreamingMoments, frechet_distance


def moments(rows: Tensor) -> StreamingMoments:
    result = StreamingMoments(rows.shape[1])
    result.update(rows)
    return result


def rows(seed: int, count: int, dim: int, scale: float = 1.0, offset: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64) @ mix * scale + offset


def by_scipy(a: Tensor, b: Tensor) -> float:
    first, second = (np.cov(x.numpy(), rowvar=False) for x in (a, b))
    root = linalg.sqrtm(first @ second).real
    gap = (a.mean(0) - b.mean(0)).numpy()
    return float(gap @ gap + np.trace(first + second - 2 * root))


@given(seed=st.integers(0, 10**6), dim=st.integers(2, 12), offset=st.sampled_from([0.0, 3.0, 1e3]))
@settings(max_examples=40, deadline=None)
def test_equals_the_textbook_formula(seed: int, dim: int, offset: float) -> None:
    a, b = rows(seed, 60, dim), rows(seed + 1, 80, dim, 0.5, offset)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(by_scipy(a, b), rel=1e-7, abs=1e-7)


def test_equals_torchmetrics() -> None:
    class Flat(nn.Module):
        num_features = 12

        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)

    images = [rows(seed, 100, 12).view(100, 3, 2, 2) for seed in (0, 1)]
    metric = FrechetInceptionDistance(feature=Flat(), normalize=True, input_img_size=(3, 2, 2))
    metric.set_dtype(torch.float64)
    for batch, real in zip(images, (True, False), strict=True):
        metric.update(batch, real=real)
    ours = frechet_distance(*(moments(batch.flatten(1)) for batch in images))
    assert ours == pytest.approx(float(metric.compute()), rel=1e-6)


@given(
    seed=st.integers(0, 10**6),
    cuts=st.lists(st.integers(0, 50), max_size=5).map(sorted),
    offset=st.sampled_from([0.0, 1e4]),
)
@settings(max_examples=40, deadline=None)
def test_batches_and_processes_do_not_matter(seed: int, cuts: list[int], offset: float) -> None:
    data = rows(seed, 50, 4, offset=offset)
    whole, merged = moments(data), StreamingMoments(4)
    for part in torch.tensor_split(data, cuts):
        merged.merge(moments(part))
    assert merged.count == whole.count == 50
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(merged.covariance(), whole.covariance(), rtol=1e-9, atol=1e-9)
    expected = torch.from_numpy(np.cov((data - offset).numpy(), rowvar=False))
    torch.testing.assert_close(whole.covariance(), expected, rtol=1e-7, atol=1e-7)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_laws_of_a_distance(seed: int) -> None:
    a, b = rows(seed, 40, 5), rows(seed + 1, 50, 5, offset=1.0)
    distance = frechet_distance(moments(a), moments(b))
    assert frechet_distance(moments(a), moments(a)) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(moments(b), moments(a)) == pytest.approx(distance, rel=1e-9)
    turn = torch.linalg.qr(rows(seed + 2, 5, 5)).Q
    turned = frechet_distance(moments(a @ turn + 3), moments(b @ turn + 3))
    assert turned == pytest.approx(distance, rel=1e-8)
    shift = torch.arange(5, dtype=torch.float64)
    moved = frechet_distance(moments(a), moments(a + shift))
    assert moved == pytest.approx(float(shift.square().sum()), rel=1e-6)


def test_singular_covariances() -> None:
    """Fewer rows than features, constant features: no offset on the diagonal, nothing complex."""
    a = torch.zeros(5, 20, dtype=torch.float64)
    a[:, 0] = torch.arange(5)
    b = torch.zeros(5, 20, dtype=torch.float64)
    b[:, 1] = torch.arange(5)
    gap = (a.mean(0) - b.mean(0)).square().sum()
    # Commuting covariances without common support: the cross term vanishes.
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(float(gap) + 2 * 2.5, rel=1e-9)


def test_errors_say_what_was_given() -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 2\); expected \(n, 4\)"):
        StreamingMoments(4).update(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="not finite"):
        StreamingMoments(1).update(torch.tensor([[float("nan")]]))
    with pytest.raises(ValueError, match="at least 2 rows; there are 1"):
        moments(torch.zeros(1, 4)).covariance()
    with pytest.raises(ValueError, match="of 3 features into moments of 4"):
        StreamingMoments(4).merge(StreamingMoments(3))
    with pytest.raises(ValueError, match="4 and 3 features"):
        frechet_distance(StreamingMoments(4), StreamingMoments(3))
