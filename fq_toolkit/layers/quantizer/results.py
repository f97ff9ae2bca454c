"""What lookups return."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class QuantizerOutput(NamedTuple):
    """What a lookup returns.

    Attributes:
        quantized: like the features.
        indices: int64, the features' shape without the channel axis (plus an axis of heads or levels, if
            several); -1 for masked rows and rows that are not finite.
        loss: ``(B,)`` float32, the commitment loss of each sample.
        perplexity: scalar float32, ``exp(-sum p log(p + 1e-10))`` of this batch's codes (``(levels,)`` if
            several).
    """

    quantized: Tensor
    indices: Tensor
    loss: Tensor
    perplexity: Tensor


class Lookup(NamedTuple):
    """One forward of `FeatureQuantizer` before it is shaped for the user.

    Attributes:
        quantized: like the features.
        loss: ``(B,)`` float32.
        indices: ``(N,)`` int32, heads of a sample one after the other; negative where there is no code.
        counts: ``(K,)`` int64.
        is_replay: whether this forward repeats another, as checkpointing does.
    """

    quantized: Tensor
    loss: Tensor
    indices: Tensor
    counts: Tensor
    is_replay: bool
