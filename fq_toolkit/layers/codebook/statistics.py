"""What training forwards leave for the dictionary, and what the host keeps of it."""

from __future__ import annotations

import warnings
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
        """Pack everything into one float32 vector that adds up across ranks without losing a count."""
        samples = torch.full_like(self.skipped, 1) * self.samples
        integers = torch.cat([self.counts, torch.stack([self.skipped, samples])])
        # float32 holds integers up to 2^24 only. Each half stays below that in the sum over 1024 ranks.
        high, low = integers >> _LOW_BITS, integers & ((1 << _LOW_BITS) - 1)
        return torch.cat([high.float(), low.float(), self.sums.reshape(-1), self.loss.sum().reshape(1)])

    def unflatten(self, flat: Tensor) -> BatchStatistics:
        """Read statistics of the shapes of this one from a vector made by `flatten`."""
        length = self.counts.numel() + 2
        high, low, sums, loss = flat.split([length, length, self.sums.numel(), 1])
        # The low halves carry into the high ones here, in integers, where nothing is rounded.
        integers = (high.to(torch.int64) << _LOW_BITS) + low.to(torch.int64)
        return BatchStatistics(integers[:-2], sums.view_as(self.sums), integers[-2], loss, integers[-1])


def perplexity(counts: Tensor) -> Tensor:
    """Return ``exp(-sum p log(p + 1e-10))`` of ``(K,)`` counts: how many codes are in even use.

    A scalar float32. The ``1e-10`` is that of the references; it also makes ``0 log 0`` zero.
    """
    p = counts.float() / counts.sum().float().clamp(min=1e-30)
    return torch.exp(-(p * torch.log(p + 1e-10)).sum())


def batch_mean(loss: Tensor, samples: Tensor | int | None = None) -> Tensor:
    """Return the sum of losses over the number of samples (by default their own), 0 for an empty batch."""
    total = loss.shape[0] if samples is None else int(samples)
    return loss.sum() / max(total, 1)


class HostState:
    """What a layer knows on the host, so that no step has to ask the device.

    Attributes:
        started: the dictionary has started; False means that the device must be asked.
        given: somebody has given codes to a dictionary that waits for data; None if nobody has asked yet.
        counts_commits: whether ``commits_now`` is kept up, as a schedule of the strength needs.
        commits_now: int64 scalar on the CPU, updates so far.  A tensor, as a compiled graph would be bound to
            a number.
        shape: shape of the last features, None before any.
        counts: ``(K,)`` counts of the last batch, None before any.
        loss: per-sample losses of the last batch.
        samples: how many samples ``loss`` covers.
        restarts: how many codes restarted at the last update, None before any.
    """

    def __init__(self) -> None:
        self.started = False
        self.given: bool | None = None
        self.counts_commits = False
        self.commits_now = torch.zeros((), dtype=torch.int64, device="cpu")
        self.shape: tuple[int, ...] | None = None
        self.counts: Tensor | None = None
        self.loss: Tensor | None = None
        self.samples: Tensor | int = 0
        self.restarts: Tensor | None = None
        self._warned: set[str] = set()

    @property
    def commits(self) -> int:
        """The number of updates so far; by way of NumPy, which reads it inside a fake mode too."""
        return int(self.commits_now.numpy())

    def observe(self, batch: BatchStatistics) -> None:
        """Keep what reports show of the last batch; not the sums, which may be large."""
        self.counts, self.loss, self.samples = batch.counts, batch.loss, batch.samples

    def warn_once(self, message: str) -> None:
        """Warn, unless this layer has said so before."""
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=5)
