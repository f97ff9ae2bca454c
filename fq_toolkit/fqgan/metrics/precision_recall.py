"""Precision and recall of a set of features against another, by nearest neighbours."""

from typing import NamedTuple

import torch
from torch import Tensor

from fq_toolkit.fqgan.metrics.feature_rows import finite_rows

NEIGHBOURS = 3
_CHUNK = 1024


class PrecisionRecall(NamedTuple):
    """Two shares in [0, 1].

    precision: generated rows that lie in the manifold of the real ones: how good samples are.
    recall: real rows that lie in the manifold of the generated ones: how varied samples are.
    """

    precision: float
    recall: float


class Manifold:
    """A set of rows as the union of balls around them, each reaching to the k-th nearest other row.

    Float64; no matrix of all distances exists.

    Args:
        rows: (n, dim), n > neighbours.
        neighbours: k.

    Raises:
        ValueError: for other shapes, or for values that are not finite or too large to multiply.
    """

    def __init__(self, rows: Tensor, *, neighbours: int = NEIGHBOURS) -> None:
        if rows.ndim != 2 or not 1 <= neighbours < len(rows):
            raise ValueError(
                f"{neighbours} neighbours in a set {tuple(rows.shape)}; expected rows (n, dim), "
                "and 1 or more neighbours, but fewer than rows"
            )
        rows = finite_rows(rows)
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
        if points.ndim != 2 or points.shape[1] != self.rows.shape[1] or len(points) == 0:
            raise ValueError(
                f"points are {tuple(points.shape)}; expected (m, {self.rows.shape[1]}), at least one"
            )
        centered = finite_rows(points, what="points") - self.middle
        _demand_distances(centered)
        hits = 0
        for part in centered.split(_CHUNK):
            hits += int((_squared_distances(part, self.rows) <= self.reach).any(1).sum())
        return hits / len(points)


def precision_recall(real: Manifold, fake: Manifold) -> PrecisionRecall:
    """Measure how far two sets cover each other.

    Args:
        real: of real features.
        fake: of generated features.

    Source: Kynkaanniemi et al., arXiv 1904.06991, section 2.
    """
    return PrecisionRecall(real.covers(fake.rows + fake.middle), fake.covers(real.rows + real.middle))


def _demand_distances(rows: Tensor) -> None:
    """Refuse rows whose squares overflow: nothing would be near anything, and shares would come out 0."""
    if not bool((rows.square().sum(1) * 4).isfinite().all()):
        raise ValueError("features are too large for precision and recall: their squares overflow")


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return ``|a_i - b_j|^2`` by one matrix product, in place; rounding may make it slightly negative."""
    products = (a @ b.T).mul_(-2).add_(a.square().sum(1)[:, None]).add_(b.square().sum(1))
    return products.clamp_(min=0)
