"""Summing over ranks: the group is looked up when it is needed, and everything travels in one flat vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fq_toolkit.kernels import private


class ProcessGroupReference:
    """Carries a process group through deepcopy (shared) and pickle (dropped: it means nothing elsewhere)."""

    def __init__(self, group: Any = None) -> None:
        self.group = group

    def __deepcopy__(self, memo: dict[int, Any]) -> ProcessGroupReference:
        return ProcessGroupReference(self.group)

    def __reduce__(self) -> tuple[type[ProcessGroupReference], tuple[()]]:
        return ProcessGroupReference, ()


def group_name(reference: ProcessGroupReference) -> str | None:
    """Return the name of the group to sum over, or None in a single process.

    Asked at every call, so a layer that was built before `init_process_group` synchronises all the same.
    """
    if not dist.is_available() or not dist.is_initialized():
        return None
    group = reference.group if reference.group is not None else dist.group.WORLD
    return str(group.group_name) if dist.get_world_size(group) > 1 else None  # type: ignore[union-attr]


def several_ranks() -> bool:
    """Return whether there is any other rank at all."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


# Custom ops, so that a compiled graph calls the collectives as they are.
@torch.library.custom_op("fq_toolkit::sum_over_ranks_", mutates_args=("flat",))
def sum_over_ranks_(flat: Tensor, group: str) -> None:
    """Sum ``flat`` over the ranks of the named group, in place."""
    dist.all_reduce(flat, group=private.process_group(group))


@sum_over_ranks_.register_fake
def _(flat: Tensor, group: str) -> None:
    return None


@torch.library.custom_op("fq_toolkit::gather_over_ranks", mutates_args=())
def gather_over_ranks(value: Tensor, group: str, ranks: int) -> Tensor:
    """Return the scalar ``value`` of every rank, ``(ranks,)``."""
    gathered = [torch.empty_like(value) for _ in range(ranks)]
    dist.all_gather(gathered, value.contiguous(), group=private.process_group(group))
    return torch.stack(gathered)


@gather_over_ranks.register_fake
def _(value: Tensor, group: str, ranks: int) -> Tensor:
    return value.new_empty(ranks)


def rank_and_size(group: str) -> tuple[int, int]:
    """Return this process's rank in the named group and the group's size; ask before anything is gathered."""
    _refuse_uneven_inputs()
    process_group = private.process_group(group)
    return dist.get_rank(process_group), dist.get_world_size(process_group)


def _refuse_uneven_inputs() -> None:
    """Refuse ``DistributedDataParallel.join()`` before the ranks part, which would end in an abort.

    A rank without inputs shadows the collectives of DDP, and knows nothing of ours.
    """
    if not torch.compiler.is_compiling() and private.joins_uneven_inputs():
        raise RuntimeError(
            "a FeatureQuantizer sums its statistics over the ranks in every training forward, which a rank "
            "that has run out of inputs under DistributedDataParallel.join() does not join; give all ranks "
            'the same number of batches (drop_last=True), or build it with update="manual", let it start '
            "before the block and call commit_updates(model) after it"
        )


def sum_together(vectors: Sequence[Tensor], group: str) -> list[Tensor]:
    """Sum several vectors of one dtype over the ranks in a single all_reduce."""
    _refuse_uneven_inputs()
    # One collective for all: each costs its latency, whatever its length.
    flat = torch.cat([vector.reshape(-1) for vector in vectors])
    sum_over_ranks_(flat, group)
    parts = flat.split([vector.numel() for vector in vectors])
    return [part.view_as(vector) for part, vector in zip(parts, vectors, strict=True)]
