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

_ATTRIBUTE = "_fq_toolkit_dictionaries"


class Dictionary(NamedTuple):
    """What the lookup of one forward depends on besides its features."""

    codebook: Tensor
    center: Tensor
    strength: float | Tensor


class _Region:
    """The dictionaries that the layers of one checkpointed region used, in calling order."""

    def __init__(self) -> None:
        self.seen: dict[int, list[Dictionary]] = {}
        self.replayed: dict[tuple[int, int], int] = {}

    def next_replay(self, layer: nn.Module, task: int) -> Dictionary:
        """The dictionary of the next call of ``layer`` in the repetition of backward pass ``task``."""
        seen, key = self.seen[id(layer)], (id(layer), task)
        call = self.replayed.get(key, 0)
        self.replayed[key] = call + 1
        return seen[call % len(seen)]


def in_backward() -> int | None:
    """Identity of the backward pass that is running on this thread, or None."""
    task = torch._C._current_graph_task_id()
    return None if task == -1 else task


def enclosing_regions() -> list[object]:
    """The objects of the checkpointed regions that are running, innermost first."""
    found: list[object] = []
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
            found.append(owner)
        frame = frame.f_back  # type: ignore[assignment]
    return found


def may_be_checkpointed() -> bool:
    """Whether the running forward could be one that will be repeated; cheap, and False in a plain step."""
    if not torch.is_grad_enabled():
        return True
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def remember(layer: nn.Module, codebook: Tensor, center: Tensor, strength: float | Tensor) -> bool:
    """Leave a copy of the dictionary on every enclosing region.

    Returns:
        Whether the region is one whose losses cannot be recorded: its forward runs without grad.
    """
    regions = enclosing_regions()
    if regions:
        dictionary = Dictionary(codebook.clone(), center.clone(), strength)
        for owner in regions:
            _store(owner, layer, dictionary)
    return bool(regions) and not torch.is_grad_enabled()


def recall(layer: nn.Module, task: int) -> Dictionary | None:
    """The dictionary of the forward that is being repeated, or None if nobody left one."""
    newer: list[object] = []
    for owner in enclosing_regions():
        region = getattr(owner, _ATTRIBUTE, None)
        if region is not None and id(layer) in region.seen:
            dictionary = region.next_replay(layer, task)
            for inner in newer:  # regions inside a repeated region are new, and will be repeated themselves
                _store(inner, layer, dictionary)
            return dictionary
        newer.append(owner)
    return None


def _store(owner: object, layer: nn.Module, dictionary: Dictionary) -> None:
    region = getattr(owner, _ATTRIBUTE, None)
    if region is None:
        region = _Region()
        setattr(owner, _ATTRIBUTE, region)
    region.seen.setdefault(id(layer), []).append(dictionary)
