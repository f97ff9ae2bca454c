"""Feature rows from batches or several processes, for metrics that need the rows themselves."""

from typing import Any

import torch
from torch import Tensor


def finite_rows(features: Tensor, dim: int | None = None, *, what: str = "features") -> Tensor:
    """Return rows in float64, after the checks that all metrics share.

    Args:
        features: (n, dim), of any float type.
        dim: features per row; None for any number but 0.
        what: name of the rows in messages.

    Raises:
        ValueError: for another shape, or for values that are not finite.
    """
    if features.ndim != 2 or features.shape[1] != (features.shape[1] or -1 if dim is None else dim):
        raise ValueError(f"{what} have shape {tuple(features.shape)}; expected (n, {dim or 'dim'})")
    rows = features.detach().double()
    if not bool(torch.isfinite(rows).all()):
        raise ValueError(f"{what} are not finite: the model or the extractor returned NaN or infinity")
    return rows


def demand_dim(dim: int) -> None:
    """Refuse a metric of no features.

    Raises:
        ValueError: saying what was given.
    """
    if dim < 1:
        raise ValueError(f"there are {dim} features or classes; expected at least 1")


class FeatureRows:
    """Up to ``limit`` rows, float64 on the CPU; later ones are dropped.

    Args:
        dim: features per row.
        limit: rows that are kept, by every process.

    Example:
        >>> rows = FeatureRows(2, limit=3)
        >>> rows.update(torch.zeros(2, 2))
        >>> rows.update(torch.ones(2, 2))
        >>> rows.tensor().tolist()
        [[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]]
    """

    def __init__(self, dim: int, *, limit: int) -> None:
        demand_dim(dim)
        self.dim, self.limit = dim, limit
        self._parts: list[Tensor] = []
        self.count = 0

    def update(self, features: Tensor) -> None:
        """Take in rows (n, dim), of any float type and device.

        Raises:
            ValueError: for another shape, or for values that are not finite.
        """
        kept = finite_rows(features.cpu(), self.dim)[: self.limit - self.count]
        if len(kept):
            self._parts.append(kept)
            self.count += len(kept)

    def merge(self, other: "FeatureRows") -> None:
        """Take in the rows of another object.

        Raises:
            ValueError: when it has another number of features.
        """
        self.update(other.tensor())

    def merge_processes(self, accelerator: Any) -> None:
        """Replace the rows by those of all processes together; every process has to call it."""
        from accelerate.utils import gather_object

        if accelerator.num_processes == 1:
            return
        parts = gather_object([self.tensor()])
        self._parts, self.count = [], 0
        self.limit *= accelerator.num_processes  # each process kept its share
        for part in parts:
            self.update(part)

    def tensor(self) -> Tensor:
        """Return all rows, float64 (count, dim)."""
        return torch.cat([torch.zeros(0, self.dim, dtype=torch.float64), *self._parts])
