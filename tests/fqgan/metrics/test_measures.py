"""KID, inception score, precision and recall: against other implementations and written-out formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from torch import Tensor, nn
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from fq_toolkit.fqgan.metrics import kid
from fq_toolkit.fqgan.metrics import precision_recall as pr
from fq_toolkit.fqgan.metrics.feature_rows import FeatureRows
from fq_toolkit.fqgan.metrics.inception_score import ClassScores, SplitScores
from fq_toolkit.fqgan.metrics.kid import kernel_distance
from fq_toolkit.fqgan.metrics.precision_recall import Manifold, PrecisionRecall, precision_recall


def rows(seed: int, count: int, dim: int, offset: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64) + offset


class Flat(nn.Module):
    num_features = 12

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def by_definition(a: np.ndarray, b: np.ndarray) -> float:
    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def off_diagonal(x: np.ndarray) -> float:
        values = kernel(x, x)
        return float(values[~np.eye(len(x), dtype=bool)].mean())

    return off_diagonal(a) + off_diagonal(b) - 2 * float(kernel(a, b).mean())


@given(seed=st.integers(0, 10**6), n=st.integers(2, 30), m=st.integers(2, 30), chunk=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_kernel_distance_is_its_formula(seed: int, n: int, m: int, chunk: int) -> None:
    a, b = rows(seed, n, 5), rows(seed + 1, m, 5, offset=0.7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kid, "_CHUNK", chunk)
        found = kernel_distance(a, b)
    assert found == pytest.approx(by_definition(a.numpy(), b.numpy()), rel=1e-10, abs=1e-10)
    assert kernel_distance(b, a) == pytest.approx(found, rel=1e-10, abs=1e-10)


def test_kernel_distance_equals_torchmetrics() -> None:
    images = [rows(seed, 40, 12, 0.3 * seed).float().view(40, 3, 2, 2) for seed in (0, 1)]
    metric = KernelInceptionDistance(feature=Flat(), subsets=1, subset_size=40, normalize=True)
    for batch, real in zip(images, (True, False), strict=True):
        metric.update(batch, real=real)
    expected = float(metric.compute()[0])
    assert kernel_distance(*(batch.flatten(1) for batch in images)) == pytest.approx(expected, rel=1e-4)


def test_kernel_distance_is_unbiased() -> None:
    distances = [kernel_distance(rows(2 * i, 50, 4), rows(2 * i + 1, 50, 4)) for i in range(100)]
    mean, error = np.mean(distances), np.std(distances) / 10
    assert abs(mean) < 4 * error
    assert min(distances) < 0
    with pytest.raises(ValueError, match="expected 2 or more rows"):
        kernel_distance(rows(0, 1, 4), rows(0, 5, 4))


@given(seed=st.integers(0, 10**6), cut=st.integers(0, 20))
@settings(max_examples=30, deadline=None)
def test_inception_score_is_its_formula_and_merges(seed: int, cut: int) -> None:
    logits = 3 * rows(seed, 20, 6)
    whole, first, second = ClassScores(6), ClassScores(6), ClassScores(6)
    whole.update(logits)
    first.update(logits[:cut])
    second.update(logits[cut:])
    first.merge(second)
    p = logits.softmax(1).numpy()
    expected = np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean())
    assert whole.score() == pytest.approx(float(expected), rel=1e-10)
    assert first.score() == pytest.approx(whole.score(), rel=1e-12)
    assert 1 - 1e-12 <= whole.score() <= 6
    assert first.count == 20


def test_inception_score_equals_torchmetrics() -> None:
    logits = rows(5, 60, 12).float()
    metric = InceptionScore(feature=Flat(), splits=1)
    metric.update(logits.view(60, 3, 2, 2))
    scores = ClassScores(12)
    scores.update(logits)
    assert scores.score() == pytest.approx(float(metric.compute()[0]), rel=1e-5)


def test_inception_score_at_its_ends() -> None:
    certain, alike = ClassScores(4), ClassScores(4)
    certain.update(1e4 * torch.eye(4))
    alike.update(torch.ones(7, 4))
    assert certain.score() == pytest.approx(4)
    assert alike.score() == pytest.approx(1)
    with pytest.raises(ValueError, match="at least one image"):
        ClassScores(4).score()
    with pytest.raises(ValueError, match=r"shape \(2, 3\); expected \(n, 4\)"):
        certain.update(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="scores of 3 classes into 4"):
        certain.merge(ClassScores(3))


def measure(real: Tensor, fake: Tensor, k: int = 3) -> PrecisionRecall:
    return precision_recall(Manifold(real, neighbours=k), Manifold(fake, neighbours=k))


def covered(points: np.ndarray, manifold: np.ndarray, k: int) -> float:
    among = np.sort(cdist(manifold, manifold), axis=1)[:, k]  # column 0 is the row itself
    return float((cdist(points, manifold) <= among).any(1).mean())


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(5, 40),
    m=st.integers(5, 40),
    k=st.integers(1, 4),
    chunk=st.integers(1, 50),
    offset=st.sampled_from([0.0, 0.5, 1e4]),
)
@settings(max_examples=60, deadline=None)
def test_precision_and_recall_are_their_definition(
    seed: int, n: int, m: int, k: int, chunk: int, offset: float
) -> None:
    real, fake = rows(seed, n, 3, offset), 0.7 * (rows(seed + 1, m, 3, offset) - offset) + offset
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pr, "_CHUNK", chunk)
        found = measure(real, fake, k)
    a, b = real.numpy(), fake.numpy()
    assert found == pytest.approx((covered(b, a, k), covered(a, b, k)))
    assert measure(fake, real, k) == pytest.approx((found.recall, found.precision))


def test_what_precision_and_recall_mean() -> None:
    real = rows(0, 400, 2)
    few_modes = real[:200] * 0.05  # good and alike
    noise = 6 * rows(1, 200, 2)  # varied and bad
    assert measure(real, few_modes).precision > 0.9 > 0.2 > measure(real, few_modes).recall
    assert measure(real, noise).recall > 0.9 > 0.6 > measure(real, noise).precision
    assert measure(real, real) == (1, 1)
    assert measure(real, real + 100) == (0, 0)
    with pytest.raises(ValueError, match=r"3 neighbours in a set \(3, 2\)"):
        Manifold(real[:3])
    with pytest.raises(ValueError, match=r"points are \(400, 1\); expected \(m, 2\)"):
        Manifold(real).covers(real[:, :1])


@given(limit=st.integers(0, 30), cuts=st.lists(st.integers(0, 20), max_size=4).map(sorted))
@settings(max_examples=30, deadline=None)
def test_feature_rows_keep_the_first(limit: int, cuts: list[int]) -> None:
    data = rows(0, 20, 3)
    kept, merged = FeatureRows(3, limit=limit), FeatureRows(3, limit=limit)
    for part in torch.tensor_split(data, cuts):
        kept.update(part.float())
        other = FeatureRows(3, limit=limit)
        other.update(part.float())
        merged.merge(other)
    assert torch.equal(kept.tensor(), data.float().double()[:limit])
    assert torch.equal(merged.tensor(), kept.tensor())
    assert kept.count == len(kept.tensor()) == min(limit, 20)
    with pytest.raises(ValueError, match=r"shape \(2, 4\); expected \(n, 3\)"):
        kept.update(torch.zeros(2, 4))


def test_the_kernel_of_equal_rows() -> None:
    assert math.isclose(kernel_distance(torch.ones(4, 3), torch.ones(5, 3)), 0, abs_tol=1e-12)


@given(
    seed=st.integers(0, 10**6), n=st.integers(6, 40), m=st.integers(1, 40), k=st.integers(1, 5),
    chunk=st.integers(1, 50), offset=st.sampled_from([0.0, 0.5, 1e4]),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_density_and_coverage_are_their_formulas(
    seed: int, n: int, m: int, k: int, chunk: int, offset: float
) -> None:
    real, fake = rows(seed, n, 3) + offset, 0.8 * rows(seed + 1, m, 3) + offset + 0.1
    reach = np.sort(cdist(real, real), axis=1)[:, k]
    inside = cdist(fake, real) <= reach  # (fake, real)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pr, "_CHUNK", chunk)
        measured = pr.density_coverage(Manifold(real, neighbours=k), fake)
    assert measured.density == pytest.approx(inside.sum() / (k * m), abs=1e-12)
    assert measured.coverage == pytest.approx(inside.any(0).mean(), abs=1e-12)


def test_density_and_coverage_of_equal_and_of_collapsed_sets() -> None:
    real, again = rows(0, 1500, 4), rows(1, 1500, 4)
    equal = pr.density_coverage(Manifold(real, neighbours=5), again)
    assert equal.density == pytest.approx(1, abs=0.1)
    # Naeem et al., equation 8: 1 - 2^-k for equal distributions of many rows
    assert equal.coverage == pytest.approx(1 - 2**-5, abs=0.02)
    collapsed = pr.density_coverage(Manifold(real, neighbours=5), real.mean(0).repeat(1500, 1))
    assert collapsed.density > 1.2
    assert collapsed.coverage < 0.1


@given(
    seed=st.integers(0, 10**6), total=st.integers(1, 60), splits=st.integers(1, 12), ranks=st.integers(1, 3)
)
@settings(max_examples=40, deadline=None)
def test_split_scores_are_those_of_consecutive_parts(seed: int, total: int, splits: int, ranks: int) -> None:
    logits = 3 * rows(seed, total, 5)
    splits_of = [SplitScores(5, total=total, splits=splits) for _ in range(ranks)]
    for rank, scores in enumerate(splits_of):
        mine = torch.arange(total)[rank::ranks]
        for batch in mine.split(7):
            scores.update(logits[batch], batch)
    for other in splits_of[1:]:
        for part, joined in zip(splits_of[0].parts, other.parts, strict=True):
            part.merge(joined)
    parts = min(splits, total)
    p = logits.softmax(1).numpy()
    expected = []
    for index in range(parts):  # where parts divide the total, the released slices of total // parts images
        some = p[[i for i in range(total) if i * parts // total == index]]
        expected.append(np.exp((some * (np.log(some) - np.log(some.mean(0)))).sum(1).mean()))
    assert splits_of[0].score() == pytest.approx((np.mean(expected), np.std(expected)), rel=1e-9, abs=1e-9)
