"""What a layer knows on the host, so that no step has to ask the device."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from fq_toolkit.layers.codebook.statistics import BatchStatistics


class HostMemory:
    """Facts about one layer.

    Attributes:
        started: the dictionary has started; False means that the device must be asked.
        given: somebody has given codes to a dictionary that waits for data; None if nobody has asked yet.
        commits_now: int64 scalar on the CPU, updates so far, kept only for a schedule of the strength.  A
            tensor, as a compiled graph would be bound to a number.
        staged: statistics have been staged since the last commit.
        staged_forwards: by how many forwards, kept only for ``update_every``.
        shape: shape of the last features, None before any.
        counts: ``(K,)`` counts of the last batch, None before any.
        loss: per-sample losses of the last batch.
        samples: how many samples ``loss`` covers.
        restarts: how many codes restarted at the last update, None before any.
    """

    def __init__(self) -> None:
        self.started = False
        self.given: bool | None = None
        self.commits_now = torch.zeros((), dtype=torch.int64, device="cpu")
        self.staged = False
        self.staged_forwards = 0
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
