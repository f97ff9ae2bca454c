"""The Frechet distance between two sets of features, from streaming, mergeable moments in float64."""

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from fq_toolkit.fqgan.metrics.feature_rows import demand_dim, finite_rows


class StreamingMoments:
    """Mean and covariance of feature rows that come in batches, or from several processes.

    Batches are merged with the update of Chan, Golub and LeVeque (1979), which is exact up to rounding and
    does not subtract large numbers. Everything is float64 on the CPU.

    Args:
        dim: features per row.

    Example:
        >>> moments = StreamingMoments(2)
        >>> moments.update(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
        >>> moments.count, moments.mean.tolist(), moments.covariance().tolist()
        (2, [1.0, 1.0], [[2.0, 0.0], [0.0, 0.0]])
    """

    def __init__(self, dim: int) -> None:
        demand_dim(dim)
        self.dim = dim
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64)

    def update(self, features: Tensor) -> None:
        """Take in rows (n, dim), of any float type and device.

        Raises:
            ValueError: for another shape, or for values that are not finite.
        """
        rows = finite_rows(features.cpu(), self.dim)
        if len(rows) == 0:
            return
        mean = rows.mean(0)
        centered = rows - mean
        # In place: with 2048 features a temporary is 32 MiB, more to write than the product takes to compute.
        self._scatter.addmm_(centered.T, centered)
        self._move_mean(len(rows), mean)

    def merge(self, other: "StreamingMoments") -> None:
        """Take in all rows of another object.

        Raises:
            ValueError: when it has another number of features.
        """
        if other.dim != self.dim:
            raise ValueError(f"cannot merge moments of {other.dim} features into moments of {self.dim}")
        if other.count == 0:
            return
        self._scatter += other._scatter
        self._move_mean(other.count, other.mean)

    def _move_mean(self, count: int, mean: Tensor) -> None:
        """Join the means, and add what lies between them to the scatter; both scatters are in it already."""
        total = self.count + count
        delta = mean - self.mean
        self._scatter.addr_(delta, delta, alpha=self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total

    def covariance(self) -> Tensor:
        """Return the unbiased covariance, float64 (dim, dim).

        Raises:
            ValueError: with fewer than two rows.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 rows; there are {self.count}")
        return self._scatter / (self.count - 1)

    def merge_processes(self, accelerator: Any) -> None:
        """Replace the moments by those of all processes together; every process has to call it."""
        from accelerate.utils import gather_object

        if accelerator.num_processes == 1:
            return
        parts = gather_object([(self.count, self.mean, self._scatter)])
        self.__init__(self.dim)  # type: ignore[misc]
        for count, mean, scatter in parts:
            part = StreamingMoments(self.dim)
            part.count, part.mean, part._scatter = count, mean, scatter
            self.merge(part)


class Gaussian(Protocol):
    """What a Frechet distance needs of a set: moments of rows, or statistics from a file."""

    @property
    def dim(self) -> int:
        """Features."""

    @property
    def mean(self) -> Tensor:
        """Float64 (dim,)."""

    def covariance(self) -> Tensor:
        """Return the unbiased covariance, float64 (dim, dim)."""


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Return ``|m_a - m_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a^1/2 S_b S_a^1/2)^1/2)``.

    The product under the root is symmetric, so two symmetric eigenvalue problems replace the usual root of a
    non-symmetric matrix: no complex numbers, no offset on the diagonal for singular covariances.

    Args:
        a: moments of one set, or stored statistics.
        b: those of the other.

    Raises:
        ValueError: when the numbers of features differ, a set has fewer than two rows, or values are so large
            that their products overflow.

    Source: Dowson and Landau (1982); Heusel et al., arXiv 1706.08500, equation 6.
    """
    if a.dim != b.dim:
        raise ValueError(f"the sets have {a.dim} and {b.dim} features; a distance needs the same number")
    first, second = a.covariance(), b.covariance()
    # NaN must not reach the end: max(0, NaN) is 0, the best distance that there is
    spread = (first.trace() * second.trace(), (a.mean - b.mean).square().sum())
    if not all(math.isfinite(float(value)) for value in (*spread, first.sum(), second.sum())):
        raise ValueError("features are too large for a Frechet distance: their products overflow")
    values, vectors = torch.linalg.eigh(first)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    inner = root @ second @ root
    cross = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + first.trace() + second.trace() - 2 * cross
    return max(0.0, float(distance))
