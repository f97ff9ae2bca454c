"""Precision, recall, density and coverage of a set of features against another, by nearest neighbours."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fq_toolkit.fqgan.metrics.feature_rows import finite_rows

NEIGHBOURS = 3
"""Of precision and recall, as published."""
DENSITY_NEIGHBOURS = 5
"""Of density and coverage, as published."""
_CHUNK = 1024


class PrecisionRecall(NamedTuple):
    """Two shares in [0, 1].

    precision: generated rows that lie in the manifold of the real ones: how good samples are.
    recall: real rows that lie in the manifold of the generated ones: how varied samples are.
    """

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """How generated rows lie among the real ones.

    density: balls around real rows that a generated one lies in, over the number expected where sets are
        equal; about 1 then, and more where samples crowd into dense regions. One far real row with a huge
        ball, which lifts precision, hardly matters.
    coverage: share of real rows with a generated one in their ball, in [0, 1].
    """

    density: float
    coverage: float


class Manifold:
    """A set of rows as the union of balls around them, each reaching to the k-th nearest other row.

    Float64; no matrix of all distances exists.

    Args:
        rows: (n, dim), n > neighbours.
        neighbours: k.

    Raises:
        ValueError: for other shapes, or for values that are not finite or too large to multiply.

    Example:
        >>> line = Manifold(torch.tensor([[0.0], [1.0], [3.0]]), neighbours=1)
        >>> line.covers(torch.tensor([[0.5], [-2.0]]))  # balls reach from -1 to 1, 0 to 2, 1 to 5
        0.5
    """

    def __init__(self, rows: Tensor, *, neighbours: int = NEIGHBOURS) -> None:
        if rows.ndim != 2 or not 1 <= neighbours < len(rows):
            raise ValueError(
                f"{neighbours} neighbours in a set {tuple(rows.shape)}; expected rows (n, dim), "
                "and 1 or more neighbours, but fewer than rows"
            )
        rows = finite_rows(rows)
        self.neighbours = neighbours
        # Without their mean, rows have the same distances and lose fewer digits to cancellation.
        self.middle = rows.mean(0)
        self.rows = rows - self.middle
        _demand_distances(self.rows)
        reach = []
        for start in range(0, len(rows), _CHUNK):
            distances = _squared_distances(self.rows[start : start + _CHUNK], self.rows)
            own = torch.arange(len(distances))
            distances[own, own + start] = torch.inf  # a row is no neighbour of itself
            reach.append(distances.topk(neighbours, dim=1, largest=False).values[:, -1])
        self.reach = torch.cat(reach)

    def covers(self, points: Tensor) -> float:
        """Return the share of the points (m, dim) that lie in a ball.

        Raises:
            ValueError: for another number of features, no points, or values that are not finite or too large
                to multiply.
        """
        return sum(int(inside.any(1).sum()) for inside in self.memberships(points)) / len(points)

    def memberships(self, points: Tensor) -> Iterator[Tensor]:
        """Yield bool (some points, n): whether a point lies in the ball around a row; all points in turn.

        Raises:
            ValueError: for another number of features, no points, or values that are not finite or too large
                to multiply.
        """
        if points.ndim != 2 or points.shape[1] != self.rows.shape[1] or len(points) == 0:
            raise ValueError(
                f"points are {tuple(points.shape)}; expected (m, {self.rows.shape[1]}), at least one"
            )
        centered = finite_rows(points, what="points") - self.middle
        _demand_distances(centered)
        for part in centered.split(_CHUNK):
            yield _squared_distances(part, self.rows) <= self.reach


def precision_recall(real: Manifold, fake: Manifold) -> PrecisionRecall:
    """Measure how far two sets cover each other.

    Args:
        real: of real features.
        fake: of generated features.

    Source: Kynkaanniemi et al., arXiv 1904.06991, section 2.
    """
    return PrecisionRecall(real.covers(fake.rows + fake.middle), fake.covers(real.rows + real.middle))


def density_coverage(real: Manifold, fake: Tensor) -> DensityCoverage:
    """Measure how generated rows lie among the balls around real ones.

    ``density = sum_ij [fake_j in ball_i] / (k M)``, ``coverage = mean_i [some fake_j in ball_i]``, with balls
    that reach to the k-th nearest other real row.

    Args:
        real: of real features, with `DENSITY_NEIGHBOURS` to compare with published figures.
        fake: generated features (M, dim).

    Raises:
        ValueError: as `Manifold.covers`.

    Source: Naeem et al., arXiv 2002.09797, equations 3 and 4.
    """
    hits, met = 0, torch.zeros(len(real.rows), dtype=torch.bool)
    for inside in real.memberships(fake):
        hits += int(inside.sum())
        met |= inside.any(0)
    return DensityCoverage(hits / (real.neighbours * len(fake)), float(met.double().mean()))


def _demand_distances(rows: Tensor) -> None:
    """Refuse rows whose squares overflow: nothing would be near anything, and shares would come out 0."""
    if not bool((rows.square().sum(1) * 4).isfinite().all()):
        raise ValueError("features are too large for precision and recall: their squares overflow")


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return ``|a_i - b_j|^2`` by one matrix product, in place; rounding may make it slightly negative."""
    products = (a @ b.T).mul_(-2).add_(a.square().sum(1)[:, None]).add_(b.square().sum(1))
    return products.clamp_(min=0)
