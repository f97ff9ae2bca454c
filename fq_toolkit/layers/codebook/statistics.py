"""What training forwards leave for the dictionary, and its form as one flat vector for the network."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: Counts travel as two float32 parts, ``high * 2^14 + low``: exact for up to 1024 ranks and 2^38 rows.
_LOW_BITS = 14


class BatchStatistics(NamedTuple):
    """Sums over the valid rows of one or several training forwards.

    Attributes:
        counts: ``(K,)`` int64, rows per code.
        sums: ``(K, C)`` float32, sum of the rows of each code.
        skipped: int64 scalar, rows that were not finite.
        loss: per-sample losses, any shape; their sum is what counts.
        samples: how many samples ``loss`` covers; a number or an int64 scalar.
    """

    counts: Tensor
    sums: Tensor
    skipped: Tensor
    loss: Tensor
    samples: Tensor | int

    def flatten(self) -> Tensor:
        """One float32 vector that can be added across ranks without losing a count."""
        samples = torch.full_like(self.skipped, 1) * self.samples
        integers = torch.cat([self.counts, torch.stack([self.skipped, samples])])
        high, low = integers >> _LOW_BITS, integers & ((1 << _LOW_BITS) - 1)
        return torch.cat([high.float(), low.float(), self.sums.reshape(-1), self.loss.sum().reshape(1)])

    def unflatten(self, flat: Tensor) -> BatchStatistics:
        """Statistics of the shapes of this one from a vector made by `flatten`."""
        length = self.counts.numel() + 2
        high, low, sums, loss = flat.split([length, length, self.sums.numel(), 1])
        integers = (high.to(torch.int64) << _LOW_BITS) + low.to(torch.int64)
        return BatchStatistics(integers[:-2], sums.view_as(self.sums), integers[-2], loss, integers[-1])


def perplexity(counts: Tensor) -> Tensor:
    """``exp(-sum p log(p + 1e-10))`` of ``(K,)`` counts: how many codes are in even use.  Scalar float32."""
    p = counts.float() / counts.sum().float().clamp(min=1e-30)
    return torch.exp(-(p * torch.log(p + 1e-10)).sum())
