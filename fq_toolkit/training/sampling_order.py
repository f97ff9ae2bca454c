"""The order in which a trainer sees its data: a fresh permutation per epoch that can be continued exactly.

Own code rather than a DataLoader's sampler: its whole state is two integers, which a checkpoint can hold.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fq_toolkit.training.errors import ConfigError


class ShuffledIndices:
    """Endless batches of row numbers, without replacement within an epoch.

    Epoch e is a permutation drawn from (seed, e) only, so two integers are the whole state. Every process
    takes its own part of each global batch; the tail of an epoch that fills no global batch is left out.

    Args:
        size: rows of the dataset.
        batch_size: rows per batch and process.
        seed: of the order.
        rank: this process.
        world: number of processes.

    Raises:
        ConfigError: when the dataset has fewer rows than one global batch.
    """

    def __init__(self, size: int, batch_size: int, *, seed: int, rank: int = 0, world: int = 1) -> None:
        if size < batch_size * world:
            raise ConfigError(
                f"{size} rows do not fill a batch of {batch_size} for {world} process(es): use a smaller one"
            )
        self.size, self.batch_size, self.seed, self.rank, self.world = size, batch_size, seed, rank, world
        self.epoch = self.position = 0
        self._order = self._permutation()

    def _permutation(self) -> Tensor:
        # The prime keeps epochs of neighbouring seeds apart; a generator of its own leaves torch's untouched.
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        return torch.randperm(self.size, generator=generator)

    def next(self) -> Tensor:
        """Return the next batch of row numbers, int64 (batch_size,)."""
        # The tail is dropped rather than filled up: batches of one size, and no row twice in an epoch.
        if self.position + self.batch_size * self.world > self.size:
            self.epoch, self.position = self.epoch + 1, 0
            self._order = self._permutation()
        start = self.position + self.rank * self.batch_size
        self.position += self.batch_size * self.world
        return self._order[start : start + self.batch_size]

    def state_dict(self) -> dict[str, int]:
        """Return the place in the order."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to a place in the order."""
        self.epoch, self.position = state["epoch"], state["position"]
        self._order = self._permutation()
