"""Precision and recall of a set of features against another, by nearest neighbours."""

from typing import NamedTuple

import torch
from torch import Tensor

NEIGHBOURS = 3
_CHUNK = 1024


class PrecisionRecall(NamedTuple):
    """Two shares in [0, 1].

    precision: generated rows that lie in the manifold of the real ones: how good samples are.
    recall: real rows that lie in the manifold of the generated ones: how varied samples are.
    """

    precision: float
    recall: float


def precision_recall(real: Tensor, fake: Tensor, *, neighbours: int = NEIGHBOURS) -> PrecisionRecall:
    """Measure how far two sets cover each other.

    The manifold of a set is the union of balls around its rows, each reaching to the row's k-th nearest other
    row of the set. Float64; no matrix of all distances exists.

    Args:
        real: rows (n, dim), n > neighbours.
        fake: rows (m, dim), m > neighbours.
        neighbours: k.

    Raises:
        ValueError: for other shapes.

    Source: Kynkaanniemi et al., arXiv 1904.06991, section 2.
    """
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(f"the sets are {tuple(real.shape)} and {tuple(fake.shape)}; expected (n, dim) twice")
    if not 1 <= neighbours < min(len(real), len(fake)):
        raise ValueError(
            f"{neighbours} neighbours in sets of {len(real)} and {len(fake)} rows; "
            "expected at least 1 and fewer than the rows of each"
        )
    middle = torch.cat([real, fake]).double().mean(0)  # distances do not change; cancellation does
    real, fake = real.double() - middle, fake.double() - middle
    return PrecisionRecall(_covered(fake, real, neighbours), _covered(real, fake, neighbours))


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    return (a.square().sum(1)[:, None] - 2 * (a @ b.T) + b.square().sum(1)).clamp(min=0)


def _covered(points: Tensor, manifold: Tensor, neighbours: int) -> float:
    """Return the share of the points that lie in a ball of the manifold."""
    radii = []
    for start in range(0, len(manifold), _CHUNK):
        distances = _squared_distances(manifold[start : start + _CHUNK], manifold)
        own = torch.arange(len(distances))
        distances[own, own + start] = torch.inf  # a row is no neighbour of itself
        radii.append(distances.kthvalue(neighbours, dim=1).values)
    reach = torch.cat(radii)
    hits = [int((_squared_distances(part, manifold) <= reach).any(1).sum()) for part in points.split(_CHUNK)]
    return sum(hits) / len(points)
