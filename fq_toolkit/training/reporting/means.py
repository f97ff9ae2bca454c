"""Means of metrics between two rows of ``metrics.csv``."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Means:
    """Running sums of metrics on the device, read only when they are logged."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add one step's 0-dim tensors."""
        stacked = torch.stack([value.detach().float() for value in values.values()])
        self._names = tuple(values)
        self._sum = stacked if self._sum is None else self._sum + stacked
        self._count += 1

    def read(self, accelerator: Any) -> dict[str, float]:
        """Return the means over steps and processes; the same on every process. Waits for the device."""
        if self._sum is None:
            return {}
        mean = accelerator.reduce(self._sum / self._count, reduction="mean")
        return dict(zip(self._names, mean.tolist(), strict=True))

    def clear(self) -> None:
        """Start over."""
        self._sum, self._count = None, 0

    def state(self) -> dict[str, Any]:
        """Return the sums of this process: a row may span a checkpoint."""
        total = None if self._sum is None else self._sum.cpu()
        return {"names": list(self._names), "sum": total, "count": self._count}

    def load_state(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore what `state` returned."""
        self._names, self._count = tuple(state["names"]), state["count"]
        self._sum = None if state["sum"] is None else state["sum"].to(device)
