"""How a forward runs: for itself, in a repetition, in an export or inside a transform."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fq_toolkit.kernels import tracing
from fq_toolkit.layers.codebook.dictionary import MovingDictionary
from fq_toolkit.layers.quantizer import checkpointing


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
    exporting, transformed = tracing.under_export(), tracing.under_transform()
    # A compiled graph cannot ask, and need not: checkpointing around one repeats the graph, not this code.
    replay_of = None if torch.compiler.is_compiling() else checkpointing.in_backward()
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
