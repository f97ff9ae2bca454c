"""Batches of sentences of similar length, in a random order that can be resumed exactly."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fq_toolkit.training.sampling_order import ShuffledIndices

POOL = 50


class BucketedIndices(ShuffledIndices):
    """Endless batches of row numbers without replacement, each from rows of similar length.

    An epoch is a permutation drawn from (seed, epoch), as in `ShuffledIndices`. Each pool of `POOL` batches
    is sorted by length and cut into batches again, and then all batches are shuffled. Little is padded, and
    neither the order of lengths nor the rows of a batch repeat. Batches are split between processes last, so
    that all processes have about equal work.

    Args:
        lengths: of each row, in tokens.
        batch_size: rows per batch and process.
        seed: of the order.
        rank: this process.
        world: number of processes.

    Raises:
        ValueError: when there are fewer rows than one batch of all processes.
    """

    def __init__(
        self, lengths: Sequence[int] | Tensor, batch_size: int, *, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        self.lengths = torch.as_tensor(lengths)
        super().__init__(len(self.lengths), batch_size, seed=seed, rank=rank, world=world)

    def _permutation(self) -> Tensor:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        order = torch.randperm(self.size, generator=generator)
        rows = self.batch_size * self.world
        whole = self.size // rows * rows  # cut before sorting, or the longest rows would be left out
        pools = order[:whole].split(POOL * rows)
        # stable: rows of equal length stay in random order, the same on every platform.
        near = [pool[self.lengths[pool].argsort(stable=True)] for pool in pools]
        batches = torch.cat(near).view(-1, rows)
        return batches[torch.randperm(len(batches), generator=generator)].flatten()
