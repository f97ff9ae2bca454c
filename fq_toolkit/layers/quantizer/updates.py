"""When the dictionaries of a model move, together or not at all.

Under ``update="training"`` every training forward of a layer commits its own statistics: one all_reduce per
layer and forward when torch.distributed is initialised.  Two things join them:

* `commit_updates(model)` commits what layers with ``update="manual"`` have staged, all layers in one
  all_reduce;
* `coalesce_updates(model)` lets the layers of one model wait for the end of the model's forward, which then
  commits them together in one all_reduce.

`frozen(model)` is a block in which none of them moves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from fq_toolkit.kernels.private import current_backward_pass
from fq_toolkit.layers.codebook import distributed
from fq_toolkit.layers.codebook.learning import commit_staged
from fq_toolkit.layers.quantizer.commitment import fresh_ledgers, quantizers

ModelT = TypeVar("ModelT", bound=nn.Module)


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


def await_the_end(model: nn.Module, args: Any) -> None:
    """Note that the model's forward runs and that its end will commit; a forward pre-hook.

    Whoever calls a part of the model, or its ``forward``, comes past this hook and past the end as well: its
    layers then commit by themselves.
    """
    if distributed.several_ranks():
        for _, layer in quantizers(model):
            layer.staged.awaited = layer.staged.coalesced


def commit_after_forward(model: nn.Module, args: Any, output: Any) -> None:
    """Commit what a forward has staged; a hook at module level, so that copies commit their own layers."""
    awaited = [layer for _, layer in quantizers(model) if layer.staged.awaited]
    if not torch.compiler.is_compiling() and current_backward_pass() is not None:
        due = []  # a checkpointed forward is being repeated
    else:
        # Not in evaluation, which one rank may run alone.
        due = [layer for layer in awaited if layer.training and layer.staging and layer.is_left_due()]
    if due:
        commit_staged(due)


def stop_waiting(model: nn.Module, args: Any, output: Any) -> None:
    """Let nothing wait any more; a forward hook that runs after a failed forward as well.

    What has been staged until then is committed before the next lookup, and not here, where this rank may be
    the only one that failed.
    """
    for _, layer in quantizers(model):
        layer.staged.awaited = False


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
        self._layers = [layer for _, layer in quantizers(model) if not layer.staged.coalesced]
        self._hooks = (
            model.register_forward_pre_hook(await_the_end),
            model.register_forward_hook(commit_after_forward),
            model.register_forward_hook(stop_waiting, always_call=True),
        )
        for layer in self._layers:
            layer.staged.make_room(layer.codebook, layer.revive > 0)
            layer.staged.coalesced = True

    def remove(self) -> None:
        """Take the hook off the model."""
        for hook in self._hooks:
            hook.remove()
        for layer in self._layers:
            layer.staged.coalesced = layer.staged.awaited = False


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
        layer.staged.coalesced = layer.staged.awaited = False


@contextlib.contextmanager
def frozen(model: ModelT) -> Iterator[ModelT]:
    """Hold the dictionaries of a model still inside a block, although it stays in training mode.

    For the generator's step, a gradient penalty, or an evaluation in training mode.  The commitment losses of
    the block are kept apart: `commitment_loss` called inside reads only the calls inside, and what is unread
    at the end is dropped, so that a gradient penalty leaves no freed graph behind for the next read.

    Args:
        model: any module that contains `FeatureQuantizer` layers.

    Yields:
        The model.

    Example:
        >>> import torch
        >>> from fq_toolkit import FeatureQuantizer, frozen
        >>> layer = FeatureQuantizer(4, 8, init="normal")
        >>> before = layer.codebook.clone()
        >>> with frozen(layer):
        ...     _ = layer(torch.randn(3, 4))
        >>> torch.equal(layer.codebook, before)
        True
    """
    layers = [layer for _, layer in quantizers(model)]
    with fresh_ledgers(model):
        for layer in layers:
            layer.frozen_depth += 1
        try:
            yield model
        finally:
            for layer in layers:
                layer.frozen_depth -= 1
