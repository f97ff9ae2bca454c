"""The dictionary that one forward must see."""

from __future__ import annotations

import torch

from fq_toolkit.layers.codebook import ownership
from fq_toolkit.layers.codebook.dictionary import MovingDictionary
from fq_toolkit.layers.codebook.state import keep_float32
from fq_toolkit.layers.quantizer import checkpointing
from fq_toolkit.layers.quantizer.checkpointing import Snapshot
from fq_toolkit.layers.quantizer.circumstances import Circumstances
from fq_toolkit.layers.quantizer.strength import Strength


def snapshot(
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
    now = strength.now(run, layer)
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
