"""Statistics that wait: several training forwards added up for one update."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fq_toolkit.layers.codebook.statistics import BatchStatistics


class _Total(NamedTuple):
    """Running sums in the terms of `BatchStatistics`, all of them tensors to add to."""

    counts: Tensor
    sums: Tensor
    skipped: Tensor
    loss: Tensor
    samples: Tensor


class Staging:
    """The statistics of one layer that wait for a commit.

    They are added up in place, as a captured CUDA graph must.  The tensors are no buffers of the layer:
    DistributedDataParallel would overwrite what a rank has gathered by what the first rank has, and a loop
    that copies buffers to an averaged model would stage there.

    Attributes:
        total: what has been staged since the last commit; None until there is room for it.
        rows: ``(K, C)``, the rows of the last staged forward from which dead codes may restart, if they do.
        pending: whether anything has been staged since the last commit.
        forwards: by how many forwards, kept only for ``update_every``.
        coalesced: whether `coalesce_updates` commits for this layer.
        awaited: whether a forward of its model is running, at whose end that happens.
    """

    def __init__(self) -> None:
        self.total: _Total | None = None
        self.rows: Tensor | None = None
        self.pending = False
        self.forwards = 0
        self.coalesced = self.awaited = False

    def make_room(self, codebook: Tensor, with_rows: bool) -> _Total:
        """Create the tensors to add up in, or bring them to where the dictionary is.

        Args:
            codebook: ``(K, C)``.
            with_rows: whether dead codes restart.

        Returns:
            ``total``.
        """
        device, count = codebook.device, torch.int64
        held = self.total
        if held is not None and held.counts.device == device:
            return held
        if held is None or held.counts.is_meta:  # what was staged without memory was nothing
            held = _Total(
                counts=torch.zeros(codebook.shape[0], dtype=count, device=device),
                sums=torch.zeros(codebook.shape, dtype=torch.float32, device=device),
                skipped=torch.zeros((), dtype=count, device=device),
                loss=torch.zeros((), dtype=torch.float32, device=device),
                samples=torch.zeros((), dtype=count, device=device),
            )
            self.rows = torch.zeros(codebook.shape, dtype=torch.float32, device=device) if with_rows else None
        else:
            held = _Total(*(value.to(device) for value in held))
            self.rows = None if self.rows is None else self.rows.to(device)
        self.total = held
        return held

    def add(self, codebook: Tensor, batch: BatchStatistics, rows: Tensor | None) -> None:
        """Add the statistics of one forward; ``rows`` replace those of the forward before."""
        total = self.make_room(codebook, rows is not None)
        total.counts.add_(batch.counts)
        total.sums.add_(batch.sums)
        total.skipped.add_(batch.skipped)
        total.loss.add_(batch.loss.sum())
        total.samples.add_(batch.samples)
        if rows is not None and self.rows is not None:
            self.rows.copy_(rows)
        self.pending = True

    def statistics(self, codebook: Tensor, with_rows: bool) -> BatchStatistics:
        """Return what has been staged since the last commit, for that commit."""
        total = self.make_room(codebook, with_rows)
        # Reports keep the small tensors beyond the commit, and `clear` empties those that are added to.
        # Nobody keeps the sums, which may be large.
        return BatchStatistics(
            total.counts.clone(),
            total.sums,
            total.skipped.clone(),
            total.loss.clone(),
            total.samples.clone(),
        )

    def forget(self, codes: Tensor) -> None:
        """Forget what has been staged for some codes, ``(K,)`` bool: they are not what the rows chose."""
        if self.total is not None and self.total.counts.device == codes.device:
            self.total.counts.masked_fill_(codes, 0)
            self.total.sums.masked_fill_(codes[:, None], 0.0)

    def clear(self) -> None:
        """Forget what has been staged."""
        if self.total is not None:
            for value in self.total:
                value.zero_()
        if self.rows is not None:
            self.rows.zero_()
        self.pending, self.forwards = False, 0
