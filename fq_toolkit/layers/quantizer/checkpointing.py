"""Activation checkpointing: a recomputed forward must see the dictionary of the forward it repeats.

A checkpointed region runs twice, and in between the dictionary has moved.  While the region runs for the
first time the layer leaves its dictionary on the object that identifies the region; the repetition, which
runs inside the backward pass, finds it there, so it neither updates nor looks at a later dictionary.  The
object is

* the ``_CheckpointFrame`` of ``torch.utils.checkpoint(..., use_reentrant=False)``, or
* the ``ctx`` of an autograd function whose forward runs the region, as with ``use_reentrant=True`` and in the
  checkpointing of other libraries.

Both are found by walking the Python stack, which happens only inside a backward pass, under saved-tensor
hooks, or without grad.  The stored dictionaries live exactly as long as the graph that owns the region.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from fq_toolkit.kernels import private

_ATTRIBUTE = "_fq_toolkit_dictionaries"

#: What a layer warns of when it cannot find the forward that it repeats.
UNKNOWN_REPLAY = (
    "a FeatureQuantizer runs inside a backward pass, as in gradient checkpointing, but no forward is known "
    "that it would repeat: it sees the dictionary of now, so that gradients are those of another forward"
)
#: And when its loss cannot be recorded.
LOST_LOSS = (
    "a FeatureQuantizer runs inside a checkpoint with use_reentrant=True, which cannot carry its commitment "
    "loss; use use_reentrant=False, or return layer.quantize(x).loss from the region"
)


class Snapshot(NamedTuple):
    """What the lookup of one forward depends on besides its features."""

    codebook: Tensor
    center: Tensor
    strength: float | Tensor


class _Region:
    """The dictionaries that the layers of one checkpointed region used, in calling order."""

    def __init__(self) -> None:
        self.seen: dict[int, list[Snapshot]] = {}
        self.replayed: dict[tuple[int, int], int] = {}

    def next_replay(self, layer: nn.Module, replay_of: int) -> Snapshot:
        """Return the dictionary of the next call of ``layer`` in the repetition by that backward pass."""
        # Counted for each backward pass, as a second one over a retained graph repeats the calls again.
        seen, key = self.seen[id(layer)], (id(layer), replay_of)
        call = self.replayed.get(key, 0)
        self.replayed[key] = call + 1
        return seen[call % len(seen)]


def enclosing_regions() -> list[object]:
    """Return the objects of the checkpointed regions that are running, innermost first."""
    regions: list[object] = []
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        owner: Any = None
        if code.co_argcount and code.co_varnames[0] == "ctx":
            owner = frame.f_locals.get("ctx")
            if not isinstance(owner, FunctionCtx):  # many a function calls its first argument so
                owner = None
        elif "gen" in code.co_varnames:  # first run, use_reentrant=False, by a function of no certain name
            generator = getattr(frame.f_locals.get("gen"), "gi_frame", None)
            owner = generator.f_locals.get("new_frame") if generator is not None else None
        elif code.co_name == "unpack_hook" and "frame" in code.co_freevars:  # its repetition
            owner = frame.f_locals.get("frame")
        if owner is not None:
            regions.append(owner)
        frame = frame.f_back  # type: ignore[assignment]
    return regions


def may_be_checkpointed() -> bool:
    """Return whether the running forward may be one that will be repeated; cheap, no in a plain step."""
    if not torch.is_grad_enabled():  # use_reentrant=True runs the region so
        return True
    # use_reentrant=False puts hooks on the tensors that the region saves.
    return private.saves_through_hooks()


def remember(layer: nn.Module, codebook: Tensor, center: Tensor, strength: float | Tensor) -> bool:
    """Leave a copy of the dictionary on every enclosing region.

    Returns:
        Whether the region is one whose losses cannot be recorded: its forward runs without grad.
    """
    regions = enclosing_regions()
    if regions:
        snapshot = Snapshot(codebook.clone(), center.clone(), strength)
        for owner in regions:
            _store(owner, layer, snapshot)
    return bool(regions) and not torch.is_grad_enabled()


def recall(layer: nn.Module, replay_of: int) -> Snapshot | None:
    """Return the dictionary of the forward that is being repeated, or None if nobody left one.

    Args:
        layer: which layer asks.
        replay_of: the backward pass in which its forward is repeated, from `current_backward_pass`.
    """
    newer: list[object] = []
    for owner in enclosing_regions():
        region = getattr(owner, _ATTRIBUTE, None)
        if region is not None and id(layer) in region.seen:
            snapshot = region.next_replay(layer, replay_of)
            for inner in newer:  # regions inside a repeated region are new, and will be repeated themselves
                _store(inner, layer, snapshot)
            return snapshot
        newer.append(owner)
    return None


def _store(owner: object, layer: nn.Module, snapshot: Snapshot) -> None:
    region = getattr(owner, _ATTRIBUTE, None)
    if region is None:
        region = _Region()
        setattr(owner, _ATTRIBUTE, region)
    region.seen.setdefault(id(layer), []).append(snapshot)
