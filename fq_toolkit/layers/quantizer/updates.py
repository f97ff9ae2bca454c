"""When the dictionaries move, and how their statistics travel between ranks.

Under ``update="training"`` every training forward of a layer commits its own statistics: one all_reduce per
layer and forward when torch.distributed is initialised.  Two things join them:

* `commit_updates(model)` commits what layers with ``update="manual"`` have staged, all layers in one
  all_reduce;
* `coalesce_updates(model)` lets the layers of one model wait for the end of the model's forward, which then
  commits them together in one all_reduce.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fq_toolkit.layers.codebook import distributed
from fq_toolkit.layers.codebook.statistics import BatchStatistics
from fq_toolkit.layers.quantizer.checkpointing import in_backward
from fq_toolkit.layers.quantizer.commitment import quantizers

if TYPE_CHECKING:
    from fq_toolkit.layers.codebook.dictionary import MovingDictionary


def commit(
    layers: Sequence[MovingDictionary],
    statistics: Sequence[BatchStatistics],
    candidates: Sequence[Tensor | None],
) -> None:
    """Apply one batch of statistics to each layer, summed over the ranks in one all_reduce.

    Args:
        layers: the layers to update; layers of different process groups are summed group by group.
        statistics: what each has gathered on this rank, possibly nothing at all.
        candidates: for each layer the rows from which dead codes may restart, ``(K, C)`` or None.
    """
    merged, restarts = list(statistics), list(candidates)
    groups: dict[str, list[int]] = {}
    for i, layer in enumerate(layers):
        group = distributed.group_name(layer.process_group)
        if group is not None:
            groups.setdefault(group, []).append(i)
    for group, members in groups.items():
        vectors = [statistics[i].flatten() for i in members]
        vectors += [rows for i in members if (rows := candidates[i]) is not None]
        summed = distributed.sum_together(vectors, group)
        rest = iter(summed[len(members) :])
        for i, vector in zip(members, summed[: len(members)], strict=True):
            merged[i] = statistics[i].unflatten(vector)
        for i in members:
            if candidates[i] is not None:
                restarts[i] = next(rest)
    for layer, batch, rows in zip(layers, merged, restarts, strict=True):
        layer.apply_statistics(batch, rows)


def commit_updates(model: nn.Module) -> None:
    """Move the dictionaries by the statistics staged since the last commit, in one all_reduce.

    For layers with ``update="manual"``: call it once per optimizer step, on every rank.  Four forwards of 8
    samples and one commit are then one forward of 32.  Ranks that staged nothing take part all the same.

    Args:
        model: any module that contains `FeatureQuantizer` layers.

    Raises:
        ValueError: no layer in the model stages its statistics.

    Example:
        >>> import torch
        >>> from fq_toolkit import FeatureQuantizer
        >>> from fq_toolkit.layers import commit_updates
        >>> layer = FeatureQuantizer(4, 8, update="manual")
        >>> for _ in range(4):
        ...     _ = layer(torch.randn(8, 4))
        >>> commit_updates(layer)
        >>> int(layer.num_updates)
        1
    """
    layers = [layer for _, layer in quantizers(model) if layer.staging]
    if not layers:
        raise ValueError(
            f"no FeatureQuantizer in {type(model).__name__} stages its statistics; build it with "
            'update="manual"'
        )
    commit_staged(layers)


def commit_staged(layers: Sequence[MovingDictionary]) -> None:
    """Commit what the given layers have staged, and start them afresh."""
    commit(
        layers,
        [layer.staged_statistics() for layer in layers],
        [layer.staged_candidates() for layer in layers],
    )
    for layer in layers:
        layer.clear_staged()


def await_the_end(model: nn.Module, args: Any) -> None:
    """Forward pre-hook of `coalesce_updates`: now the model's forward runs, and its end will commit.

    Whoever calls a part of the model, or its ``forward``, comes past this hook and past the end as well: its
    layers then commit by themselves.
    """
    if distributed.several_ranks():
        for _, layer in quantizers(model):
            layer.awaited = layer.coalesced


def commit_after_forward(model: nn.Module, args: Any, output: Any) -> None:
    """Forward hook of `coalesce_updates`; at module level, so that copies of a model commit their own."""
    awaited = [layer for _, layer in quantizers(model) if layer.awaited]
    if not torch.compiler.is_compiling() and in_backward() is not None:
        due = []  # a checkpointed forward is being repeated
    else:
        # Not in evaluation, which one rank may run alone.
        due = [layer for layer in awaited if layer.training and layer.staging and layer.is_left_due()]
    if due:
        commit_staged(due)


def stop_waiting(model: nn.Module, args: Any, output: Any) -> None:
    """Forward hook of `coalesce_updates` that runs after a failed forward as well: nothing waits any more.

    What has been staged until then is committed before the next lookup, and not here, where this rank may be
    the only one that failed.
    """
    for _, layer in quantizers(model):
        layer.awaited = False


def coalesce_updates(model: nn.Module) -> CoalescedUpdates:
    """Commit the layers of a model together at the end of its forward, in one all_reduce.

    No layer reads another's dictionary within a forward, so the results are the same.  In a single process
    there is nothing to join, and the layers go on committing by themselves.

    Args:
        model: the module whose forward runs the layers; a DistributedDataParallel wrapper or what it wraps.

    Returns:
        A handle whose ``remove()`` lets the layers commit by themselves again.
    """
    return CoalescedUpdates(model)


class CoalescedUpdates:
    """What `coalesce_updates` returns."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = [layer for _, layer in quantizers(model) if not layer.coalesced]
        self._hooks = (
            model.register_forward_pre_hook(await_the_end),
            model.register_forward_hook(commit_after_forward),
            model.register_forward_hook(stop_waiting, always_call=True),
        )
        for layer in self._layers:
            layer.make_room_to_stage()
            layer.coalesced = True

    def remove(self) -> None:
        """Take the hook off the model."""
        for hook in self._hooks:
            hook.remove()
        for layer in self._layers:
            layer.coalesced = layer.awaited = False


def forget_coalescing(model: nn.Module) -> None:
    """Take the hooks of `coalesce_updates` off a copy of a model, whose handle is the original's."""
    for hooks, ours in (
        (model._forward_pre_hooks, await_the_end),
        (model._forward_hooks, commit_after_forward),
        (model._forward_hooks, stop_waiting),
    ):
        for key in [key for key, hook in hooks.items() if hook is ours]:
            del hooks[key]
            model._forward_hooks_always_called.pop(key, None)
    for _, layer in quantizers(model):
        layer.coalesced = layer.awaited = False
