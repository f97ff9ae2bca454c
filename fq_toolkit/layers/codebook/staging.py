"""Statistics that wait: several training forwards added up for one update."""

from __future__ import annotations

import torch
from torch import Tensor

from fq_toolkit.layers.codebook import distributed
from fq_toolkit.layers.codebook.distributed import ProcessGroupReference
from fq_toolkit.layers.codebook.host_state import HostMemory
from fq_toolkit.layers.codebook.revival import no_restart_rows
from fq_toolkit.layers.codebook.state import StrictState
from fq_toolkit.layers.codebook.statistics import BatchStatistics

_STAGED = ("staged_counts", "staged_sums", "staged_skipped", "staged_samples", "staged_loss", "staged_rows")


class StagedStatistics(StrictState):
    """The part of a quantizer that stages statistics; it adds in place, as a captured CUDA graph must."""

    codebook: Tensor
    num_updates: Tensor
    staged_counts: Tensor
    staged_sums: Tensor
    staged_skipped: Tensor
    staged_samples: Tensor
    staged_loss: Tensor
    staged_rows: Tensor
    memory: HostMemory
    process_group: ProcessGroupReference
    revive: float
    update: str
    update_every: int

    def __init__(self) -> None:
        super().__init__()
        self.coalesced = self.awaited = False

    @property
    def staging(self) -> bool:
        """Whether training forwards stage their statistics instead of committing them."""
        return self.update == "manual" or self.update_every > 1 or self.waits_for_model()

    def waits_for_model(self) -> bool:
        """Whether the end of a model's forward, which is running, will commit for this layer.

        See `coalesce_updates`: only between ranks is there anything to join.
        """
        return self.coalesced and self.awaited and distributed.group_name(self.process_group) is not None

    def is_due(self) -> bool:
        """Whether ``update_every`` forwards have been staged."""
        if self.update_every == 1:
            return self.memory.staged
        return self.memory.staged_forwards >= self.update_every

    def is_left_due(self) -> bool:
        """Whether an update by training forwards is due that has not been committed yet."""
        return self.update == "training" and self.is_due()

    def make_room_to_stage(self) -> None:
        """Create the tensors that statistics are added up in, or bring them to where the dictionary is.

        They are no buffers: DistributedDataParallel would overwrite what a rank has gathered by what the
        first rank has, and a loop that copies buffers to an averaged model would stage there.
        """
        device, count = self.codebook.device, torch.int64
        if hasattr(self, "staged_counts") and self.staged_counts.device == device:
            return
        codes = self.codebook.shape
        staged = {
            "staged_counts": torch.zeros(codes[0], dtype=count, device=device),
            "staged_sums": torch.zeros(codes, dtype=torch.float32, device=device),
            "staged_skipped": torch.zeros((), dtype=count, device=device),
            "staged_samples": torch.zeros((), dtype=count, device=device),
            "staged_loss": torch.zeros((), dtype=torch.float32, device=device),
        }
        if self.revive > 0:
            staged["staged_rows"] = torch.zeros(codes, dtype=torch.float32, device=device)
        for name, room in staged.items():
            held = getattr(self, name, None)
            setattr(self, name, room if held is None or held.is_meta else held.to(device))

    def stage(self, batch: BatchStatistics, candidates: Tensor | None) -> None:
        """Add the statistics of one forward."""
        self.make_room_to_stage()
        self.staged_counts.add_(batch.counts)
        self.staged_sums.add_(batch.sums)
        self.staged_skipped.add_(batch.skipped)
        self.staged_samples.add_(batch.samples)
        self.staged_loss.add_(batch.loss.sum())
        if candidates is not None:
            self.staged_rows.copy_(candidates)
        self.memory.staged = True
        if self.update_every > 1:
            self.memory.staged_forwards += 1

    def staged_statistics(self) -> BatchStatistics:
        """What has been staged since the last commit."""
        self.make_room_to_stage()
        return BatchStatistics(
            self.staged_counts.clone(),
            self.staged_sums,
            self.staged_skipped.clone(),
            self.staged_loss.clone(),
            self.staged_samples.clone(),
        )

    def staged_candidates(self) -> Tensor | None:
        """Rows of the last staged forward for dead codes to restart from, or None if they never do."""
        if self.revive <= 0:
            return None
        if not self.memory.staged:
            group = distributed.group_name(self.process_group)
            return no_restart_rows(self.codebook, self.num_updates, group)
        return self.staged_rows

    def forget_staged(self, rows: Tensor) -> None:
        """Forget what has been staged for some codes, ``(K,)`` bool."""
        if hasattr(self, "staged_counts") and self.staged_counts.device == rows.device:
            self.staged_counts.masked_fill_(rows, 0)
            self.staged_sums.masked_fill_(rows[:, None], 0.0)

    def clear_staged(self) -> None:
        """Forget what has been staged."""
        for name in _STAGED:  # one by one, as torch 2.11 cannot compile a walk over the attributes
            staged = getattr(self, name, None)
            if staged is not None:
                staged.zero_()
        self.memory.staged, self.memory.staged_forwards = False, 0
