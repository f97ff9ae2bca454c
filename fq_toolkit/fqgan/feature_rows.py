"""Feature rows from batches or several processes, for measures that need the rows themselves."""

from typing import Any

import torch
from torch import Tensor


class FeatureRows:
    """Keeps up to ``limit`` rows, float64 on the CPU; later ones are dropped.

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
        self.dim, self.limit = dim, limit
        self._parts: list[Tensor] = []
        self.count = 0

    def update(self, features: Tensor) -> None:
        """Take in rows (n, dim), of any float type and device.

        Raises:
            ValueError: for another shape.
        """
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ValueError(f"features have shape {tuple(features.shape)}; expected (n, {self.dim})")
        kept = features[: self.limit - self.count].detach().to("cpu", torch.float64)
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
        self.limit *= accelerator.num_processes
        for part in parts:
            self.update(part)

    def tensor(self) -> Tensor:
        """Return all rows, float64 (count, dim)."""
        return torch.cat([torch.zeros(0, self.dim, dtype=torch.float64), *self._parts])
