"""Every image measure refuses what the Frechet distance refuses: no NaN, no empty set becomes a figure."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fq_toolkit.fqgan.metrics.feature_rows import FeatureRows
from fq_toolkit.fqgan.metrics.frechet import StreamingMoments, frechet_distance
from fq_toolkit.fqgan.metrics.inception_score import ClassScores
from fq_toolkit.fqgan.metrics.kid import KernelSet, kernel_distance
from fq_toolkit.fqgan.metrics.precision_recall import Manifold


def good(count: int = 8, dim: int = 4) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(count))


def moments(rows: Tensor) -> StreamingMoments:
    made = StreamingMoments(4)
    made.update(rows)
    return made


def score(rows: Tensor) -> float:
    scores = ClassScores(4)
    scores.update(rows)
    return scores.score()


def kept(rows: Tensor) -> Tensor:
    store = FeatureRows(4, limit=100)
    store.update(rows)
    return store.tensor()


MEASURES: dict[str, Callable[[Tensor], object]] = {
    "frechet": lambda rows: frechet_distance(moments(rows), moments(good())),
    "frechet, real": lambda rows: frechet_distance(moments(good()), moments(rows)),
    "kernel set": KernelSet,
    "kernel": lambda rows: kernel_distance(good(), rows),
    "kernel, real": lambda rows: kernel_distance(rows, good()),
    "manifold": Manifold,
    "covered points": lambda rows: Manifold(good()).covers(rows),
    "score": score,
    "kept rows": kept,
}


def spoiled(value: float, at: int) -> Tensor:
    rows = good()
    rows[at, 1] = value
    return rows


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(name: str, value: float) -> None:
    for at in (0, 7):
        with pytest.raises(ValueError, match="not finite"):
            MEASURES[name](spoiled(value, at))


@pytest.mark.parametrize("name", sorted(set(MEASURES) - {"kept rows"}))
def test_an_empty_set_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"0|at least one image"):
        MEASURES[name](torch.zeros(0, 4))


@pytest.mark.parametrize("name", sorted(set(MEASURES) - {"kept rows", "score", "covered points"}))
def test_a_single_row_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="1"):
        MEASURES[name](good(1))


@pytest.mark.parametrize("name", MEASURES)
def test_another_shape_is_refused(name: str) -> None:
    for shape in ((8,), (8, 4, 1), (8, 5) if name not in ("kernel set", "manifold") else (8, 0)):
        with pytest.raises(ValueError, match="expected"):
            MEASURES[name](torch.zeros(shape))


@pytest.mark.parametrize("name", ["frechet", "frechet, real", "kernel set", "manifold", "covered points"])
def test_values_whose_squares_overflow_give_no_figure(name: str) -> None:
    # max(0, NaN) is 0, which would be the best Frechet distance there is.
    with pytest.raises(ValueError, match="too large"):
        MEASURES[name](good().double() * 1e200)


def test_a_row_beyond_the_limit_is_looked_at_too() -> None:
    store = FeatureRows(4, limit=3)
    with pytest.raises(ValueError, match="not finite"):
        store.update(spoiled(float("nan"), 7))
    assert store.count == 0


def test_measures_without_any_feature_are_refused() -> None:
    for make in (StreamingMoments, ClassScores, lambda dim: FeatureRows(dim, limit=3)):
        with pytest.raises(ValueError, match="expected at least 1"):
            make(0)  # type: ignore[operator]
