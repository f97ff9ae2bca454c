"""Attention over memory slots and text.

A slot stands before the text keys and every query sees it. Only here do slots and text meet: the cache and
the mask that the model makes hold text only, so that every kind of decoding works as without a latent.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from fq_toolkit.kernels.decode import attend_one
from fq_toolkit.layers.latent.attention.merge import can_decode, can_merge, merge_slots
from fq_toolkit.layers.latent.attention.slots import Slots, in_front, pad_mask
from fq_toolkit.layers.latent.private import upcast_attention

#: Attribute of an attention module that reads memory: its number among those that do.
TAG = "_latent_layer"

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
        """Compute the attention of a module, with its slots if it has any."""
        layer = getattr(module, TAG, None)
        # The keyword reaches all attention of the model, also that of an encoder, cross attention, and layers
        # that were not chosen.
        if layer is None:
            return base(module, query, key, value, attention_mask, **options)
        slots = self._slots[layer]
        if attention_mask is not None:
            attention_mask = self._with_slots(attention_mask, slots[0].shape[2])
        return attend_with_slots(base, module, query, key, value, attention_mask, slots, **options)

    def _with_slots(self, mask: Tensor, slots: int) -> Tensor:
        """Return the mask with columns for the slots, made once for all layers that share the mask."""
        for known, padded in self._masks:  # one or two: of full and of sliding-window attention
            if known is mask:
                return padded
        padded = pad_mask(mask, slots)
        self._masks.append((mask, padded))
        return padded


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
    """Compute attention over slots and text: ``softmax(q [k_slots, k_text]^T) [v_slots, v_text]``.

    Without a mask, sdpa is causal from the upper left: query i would see keys 0..i, and the slots would
    push the text out of sight. As many empty queries as there are slots, put in front and dropped
    afterwards, restore the square that the fast kernels know; no dense mask is needed.

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

    Source: arXiv 2004.04092, section 3.2, the memory scheme.
    """
    # Two short cuts that copy no text: one query in the compiled kernel, several merged by their log-sum-exp.
    if attention_mask is None and query.shape[2] == 1 and can_decode(base, query, key, value, slots, options):
        return attend_one(query, key, value, slots, scale=options.get("scaling")), None
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if can_merge(base, query, key, value, attention_mask, options):
        # A single query is the last token, which sees all text; causal from the upper left it would see one
        # key.
        causal = bool(causal) and query.shape[2] > 1
        return merge_slots(query, key, value, slots, causal=causal, scale=options.get("scaling")), None
    count = slots[0].shape[2]
    keys, values = in_front(slots, key, value)
    bias = options.get("position_bias")
    if bias is not None:  # T5: a slot has no position, hence no bias
        options["position_bias"] = bias = F.pad(bias, (count, 0))
    if attention_mask is not None or base is eager_attention or query.shape[2] == 1 or not causal:
        return base(module, query, keys, values, attention_mask, **options)
    # Causal without a mask: empty queries make (slots + Q) x (slots + K) of Q x (slots + K).
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
    """Compute attention as the model's own file writes it out, with its sinks, caps and biases.

    Raises:
        ValueError: the file of the model has no ``eager_attention_forward``.
    """
    # GPT-2 does this itself only for the exact name "eager", and ours is "latent_eager".
    if getattr(module, "reorder_and_upcast_attn", False):
        return upcast_attention(module)(query, key, value, attention_mask)
    # The function is not registered anywhere: it stands beside the class, or beside one that it derives from.
    for kind in type(module).__mro__:
        function = getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None)
        if function is not None:
            return function(module, query, key, value, attention_mask, **options)
    raise ValueError(
        f"{type(module).__name__} has no eager attention of its own; "
        'call model.set_attn_implementation("sdpa")'
    )
