"""How a forward runs (for itself, in a repetition, in an export or transform), and what it must see."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fq_toolkit.kernels import private
from fq_toolkit.layers.codebook import ownership
from fq_toolkit.layers.codebook.dictionary import MovingDictionary
from fq_toolkit.layers.codebook.state import keep_float32
from fq_toolkit.layers.quantizer import checkpointing
from fq_toolkit.layers.quantizer.checkpointing import Snapshot
from fq_toolkit.layers.quantizer.strength import Strength


class Circumstances(NamedTuple):
    """In which circumstances a forward runs, asked once.

    Attributes:
        replay_of: identity of the backward pass that repeats it, as checkpointing does; None if it is no
            repetition.
        exporting: `torch.export` traces it.
        transformed: it runs inside a transform of `torch.func` or under forward derivatives.
        learning: it may change the dictionary.
        is_plain: none of the first three, so that it may leave traces in the layer.
    """

    replay_of: int | None
    exporting: bool
    transformed: bool
    learning: bool
    is_plain: bool


def circumstances(layer: MovingDictionary) -> Circumstances:
    """Find out how the running forward of a layer runs.

    Raises:
        RuntimeError: in training inside a transform.
    """
    exporting, transformed = private.under_export(), private.under_transform()
    # A compiled graph cannot ask, and need not: checkpointing around one repeats the graph, not this code.
    replay_of = None if torch.compiler.is_compiling() else private.current_backward_pass()
    held = layer.codebook_frozen or layer.frozen_depth > 0
    learning = layer.training and not held and replay_of is None and not exporting
    if transformed and learning:
        raise RuntimeError(
            "a FeatureQuantizer in training changes its dictionary in place, which transforms of "
            "torch.func and forward derivatives cannot see; call eval() before, or transform inside "
            "frozen(model)"
        )
    is_plain = replay_of is None and not exporting and not transformed
    return Circumstances(replay_of, exporting, transformed, learning, is_plain)


def dictionary_for(
    layer: MovingDictionary, run: Circumstances, strength: Strength, *, needs_grad: bool, records_loss: bool
) -> Snapshot:
    """Return the dictionary that a forward must see: that of the forward it repeats, or the present one.

    Args:
        layer: the layer.
        run: how the forward runs.
        strength: the layer's.
        needs_grad: whether there will be a backward pass.
        records_loss: whether there is a loss that the ledger should keep.
    """
    if run.replay_of is not None:
        repeated = checkpointing.recall(layer, run.replay_of)
        if repeated is not None:
            return repeated
        if layer.training:
            layer.host.warn_once(checkpointing.UNKNOWN_REPLAY)
    codebook = layer.codebook
    if codebook.dtype != torch.float32:
        keep_float32(layer)
        codebook = layer.codebook
    center = ownership.usable_center(layer, run.exporting, run.transformed)
    now = _strength_now(layer, run, strength)
    if needs_grad:
        codebook = codebook.clone()  # the backward pass needs the dictionary as it was
    # In evaluation too: a training forward may come before the backward pass.
    differentiated = layer.training or torch.is_grad_enabled()
    first_run = run.replay_of is None and not torch.compiler.is_compiling()
    if first_run and differentiated and checkpointing.may_be_checkpointed():
        lost = checkpointing.remember(layer, codebook, center, now)
        if lost and records_loss:
            layer.host.warn_once(checkpointing.LOST_LOSS)
    return Snapshot(codebook, center, now)


def _strength_now(layer: MovingDictionary, run: Circumstances, strength: Strength) -> float | Tensor:
    """Return the strength of this forward: a tensor in a compiled graph, which a number would bind."""
    if torch.compiler.is_compiling() and not run.exporting:
        return strength.for_graph(layer.host.commits_now)
    if strength.schedule is None:
        return strength.number
    # An averaged copy of a model gets its buffers from elsewhere: outside training they are asked, although
    # that waits for the device. In a transform or an export there is no number to be had.
    asks = not layer.training and not run.transformed and not run.exporting and not layer.num_updates.is_meta
    return strength.schedule.at(int(layer.num_updates) if asks else layer.host.commits)
