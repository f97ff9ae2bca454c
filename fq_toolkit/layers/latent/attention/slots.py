"""Memory slots as tensors: keys and values, and the columns they take in a mask."""

from __future__ import annotations

import torch
from torch import Tensor

#: Key and value of a layer's slots, each (B or 1, heads, slots, head_dim).
Slots = tuple[Tensor, Tensor]


def in_front(slots: Slots, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Concatenate slots and text, in the dtype of the text.

    Every layer comes here for every token, hence as few operations as possible.

    Args:
        slots: key and value of the slots, (B or 1, heads, slots, head_dim).
        key: (B, heads, K, key_dim), text only.
        value: (B, heads, K, value_dim), text only.

    Returns:
        Keys and values (B, heads, slots + K, head_dim).
    """
    slot_key, slot_value = slots
    # The projections may be float32 in a bfloat16 model, or on another device of a model spread over several.
    if slot_key.dtype != key.dtype or slot_key.device != key.device:
        slot_key, slot_value = slot_key.to(key), slot_value.to(value)
    if slot_key.shape[0] != key.shape[0]:
        slot_key = slot_key.expand(key.shape[0], -1, -1, -1)
        slot_value = slot_value.expand(value.shape[0], -1, -1, -1)
    return torch.cat((slot_key, key), dim=2), torch.cat((slot_value, value), dim=2)


def pad_mask(mask: Tensor, slots: int) -> Tensor:
    """Return an attention mask (..., Q, K) with visible columns for slots before the text."""
    # Concatenated and not padded: some C++ compilers reject the code that torch.compile generates for a
    # padded boolean mask.
    shape = (*mask.shape[:-1], slots)
    visible = mask.new_ones(shape) if mask.dtype == torch.bool else mask.new_zeros(shape)
    return torch.cat((visible, mask), dim=-1)
