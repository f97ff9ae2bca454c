"""Attention with memory slots in front of the text.

The registered attention functions are these, around the ones that the model would use. A slot stands before
the text keys and every query sees it; the cache and the mask that the model makes hold text only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fq_toolkit.kernels.decode import attend_one
from fq_toolkit.layers.latent.merge import can_decode, can_merge, in_front, merge_slots
from fq_toolkit.layers.latent.projector import Slots

#: Name of the keyword that carries the memory through the model's forward.
KEYWORD = "latent_memory"
#: Attribute of an attention module that reads memory: its number among those that do.
TAG = "_latent_layer"
#: Prefix of the registered implementations' names.
PREFIX = "latent_"
#: The implementations that memory can be put in front of.
ROUTED = ("eager", "sdpa")

Attention = Callable[..., tuple[Tensor, Tensor | None]]


class Memory:
    """The slots of all layers, on their way through one forward.

    Args:
        slots: key and value of each layer, each (B or 1, heads, slots, head_dim).
    """

    def __init__(self, slots: list[Slots]) -> None:
        self._slots = slots
        self._masks: list[tuple[Tensor, Tensor]] = []

    def attend(
        self,
        base: Attention,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of a module, with its slots where it has some."""
        layer = getattr(module, TAG, None)
        if layer is None:  # an encoder's, a cross attention's, or a layer's that was not chosen
            return base(module, query, key, value, attention_mask, **options)
        slots = self._slots[layer]
        if attention_mask is not None:
            attention_mask = self._with_slots(attention_mask, slots[0].shape[2])
        return attend_with_slots(base, module, query, key, value, attention_mask, slots, **options)

    def _with_slots(self, mask: Tensor, slots: int) -> Tensor:
        """The mask with columns for the slots; made once, as the layers of a model share theirs."""
        for known, padded in self._masks:
            if known is mask:
                return padded
        padded = pad_mask(mask, slots)
        self._masks.append((mask, padded))
        return padded


class Reading(NamedTuple):
    """What the probe saw of an attention.

    Attributes:
        module: the attention.
        heads: its key and value heads.
        key_dim: channels of a key head.
        value_dim: channels of a value head.
        reads: whether a slot changed its output.
    """

    module: nn.Module
    heads: int
    key_dim: int
    value_dim: int
    reads: bool


class Probe:
    """Takes the place of a `Memory` in one forward, to see which attention could read one.

    Attributes:
        readings: one per causal self-attention, in the order in which they ran.
    """

    def __init__(self) -> None:
        self.readings: list[Reading] = []

    def attend(
        self,
        base: Attention,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention as it is, compared with what a slot would make of it.

        Raises:
            TypeError: an attention that masks the keys which its index leaves out for the exact names "eager"
                and "sdpa" only, and leaves it to all others.
        """
        if any(name.endswith("indices") and value is not None for name, value in options.items()):
            raise TypeError("it chooses keys by an index, which its own implementations alone follow")
        plain = base(module, query, key, value, attention_mask, **options)
        causal = getattr(module, "is_causal", False) and not getattr(module, "is_cross_attention", False)
        if causal and all(reading.module is not module for reading in self.readings):
            # A value outside the hull of the others moves every average that includes it.
            far = 1 + value.detach().abs().amax()
            slots = (torch.zeros_like(key[:, :, :1]), torch.zeros_like(value[:, :, :1]) + far)
            mask = None if attention_mask is None else pad_mask(attention_mask, 1)
            with_slot = attend_with_slots(base, module, query, key, value, mask, slots, **options)[0]
            reads = plain[0].is_meta or not torch.equal(with_slot, plain[0])
            self.readings.append(Reading(module, key.shape[1], key.shape[3], value.shape[3], reads))
        return plain


def pad_mask(mask: Tensor, slots: int) -> Tensor:
    """An attention mask (..., Q, K) with visible columns for slots before the text."""
    # Joined, not padded: some C++ compilers refuse what torch.compile makes of a padded mask of bools.
    shape = (*mask.shape[:-1], slots)
    visible = mask.new_ones(shape) if mask.dtype == torch.bool else mask.new_zeros(shape)
    return torch.cat((visible, mask), dim=-1)


def attend_with_slots(
    base: Attention,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    slots: Slots,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention over slots and text.

    Without a mask, sdpa is causal from the upper left: query i would see keys 0..i, and the slots would push
    the text out of sight.  As many empty queries as there are slots, put in front and dropped afterwards,
    make the square again that the fast kernels know; no dense mask is needed.

    Args:
        base: the attention of the model.
        module: its attention module.
        query: (B, query heads, Q, key_dim).
        key: (B, heads, K, key_dim), text only.
        value: (B, heads, K, value_dim), text only.
        attention_mask: (B or 1, 1 or heads, Q, slots + K) or None.
        slots: key and value of the slots, (B or 1, heads, slots, head_dim).
        **options: what the model passes to its attention.

    Returns:
        Output (B, Q, query heads, value_dim), and weights (B, query heads, Q, slots + K) or None.
    """
    if attention_mask is None and query.shape[2] == 1 and can_decode(base, query, key, value, slots, options):
        return attend_one(query, key, value, slots, scale=options.get("scaling")), None
    count = slots[0].shape[2]
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if can_merge(base, query, key, value, attention_mask, options):
        causal = bool(causal) and query.shape[2] > 1
        return merge_slots(query, key, value, slots, causal=causal, scale=options.get("scaling")), None
    keys, values = in_front(slots, key, value)
    bias = options.get("position_bias")
    if bias is not None:  # T5: a slot has no position, hence no bias
        options["position_bias"] = bias = F.pad(bias, (count, 0))
    if attention_mask is not None or base is eager_attention or query.shape[2] == 1 or not causal:
        return base(module, query, keys, values, attention_mask, **options)
    if bias is not None:
        options["position_bias"] = F.pad(bias, (0, 0, count, 0))
    output, weights = base(module, F.pad(query, (0, 0, count, 0)), keys, values, None, **options)
    return output[:, count:], weights


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention that a model's own file writes out, with its sinks, caps and biases."""
    if getattr(module, "reorder_and_upcast_attn", False):  # GPT-2 does so for the exact name "eager" only
        return module._upcast_and_reordered_attn(query, key, value, attention_mask)  # type: ignore[operator]
    for kind in type(module).__mro__:
        function = getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None)
        if function is not None:
            return function(module, query, key, value, attention_mask, **options)
    raise ValueError(
        f"{type(module).__name__} has no eager attention of its own; "
        'call model.set_attn_implementation("sdpa")'
    )


def routed(base: Attention) -> Attention:
    """The attention function to register in front of ``base``."""

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        memory = options.pop(KEYWORD, None)
        if memory is None:
            return base(module, query, key, value, attention_mask, **options)
        return memory.attend(base, module, query, key, value, attention_mask, **options)

    return attention
