"""The tensors of one measurement, the same for every contender and every process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from benchmarks.shapes import Shape

_SEED = 2004_02088


@dataclass(frozen=True)
class Problem:
    """Features after a leaky ReLU, and a dictionary of slightly moved feature rows.

    Such a dictionary resembles a trained one: every code is used, and the nearest code is usually, not
    always, clear.
    """

    shape: Shape
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def _randn(self, *size: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(_SEED + seed)
        return torch.randn(*size, generator=generator)

    def _arranged(self, rows: Tensor) -> Tensor:
        """(N, D) rows as a tensor of the shape's layout."""
        shape = self.shape
        by_position = rows.view(shape.batch, *shape.positions, shape.dim)
        if shape.layout == "blc":
            return by_position
        channels_first = by_position.movedim(-1, 1)
        return channels_first if shape.layout == "channels_last" else channels_first.contiguous()

    @cached_property
    def rows(self) -> Tensor:
        """(N, D) contiguous features."""
        raw = self._randn(self.shape.rows, self.shape.dim, seed=0)
        return torch.nn.functional.leaky_relu(raw.add_(0.25), 0.2, inplace=True).to(self.device, self.dtype)

    @cached_property
    def codebook(self) -> Tensor:
        """(K, D) float32."""
        count = self.shape.num_codes
        stride = max(1, self.shape.rows // count)
        picked = self.rows[(torch.arange(count) * stride) % self.shape.rows].float()
        return picked + 0.1 * self._randn(count, self.shape.dim, seed=1).to(self.device)

    @cached_property
    def center(self) -> Tensor:
        """(D,) float32, the mean of the codes."""
        return self.codebook.mean(dim=0)

    @cached_property
    def features(self) -> Tensor:
        """The rows in the shape's layout."""
        return self._arranged(self.rows)

    @cached_property
    def grad(self) -> Tensor:
        """A gradient that arrives at the output, in the shape's layout."""
        return self._arranged(
            self._randn(self.shape.rows, self.shape.dim, seed=2).to(self.device, self.dtype)
        )

    @property
    def canonical(self) -> Tensor:
        """The features as the kernels' four-dimensional (batch, channel, position, position) view."""
        x = self.features
        return x.movedim(-1, 1).unsqueeze(2) if self.shape.layout == "blc" else x

    def prepare(self) -> None:
        """Make the inputs, so that they do not count as a call's memory."""
        self.rows, self.codebook, self.features, self.grad  # noqa: B018 - made once, then kept

    def small(self) -> Problem:
        """The same problem on few rows."""
        return Problem(self.shape.with_few_rows(), self.device, self.dtype)

    @property
    def feature_bytes(self) -> int:
        """Bytes of one array of N x D features."""
        return prod((self.shape.rows, self.shape.dim, torch.empty(0, dtype=self.dtype).element_size()))
