"""The attention function alone, against softmax written out, for every shape and kind of mask."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from fq_toolkit.layers.latent.attention.attend import Memory, attend_with_slots
from fq_toolkit.layers.latent.attention.route import routed
from fq_toolkit.layers.latent.attention.slots import pad_mask


class Attention(nn.Module):
    """The attributes of a causal self-attention that attention functions look at."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.is_causal = True
        self.num_key_value_groups = groups
        self._latent_layer = 0


def by_hand(
    query: Tensor, key: Tensor, value: Tensor, slots: tuple[Tensor, Tensor], visible: Tensor
) -> Tensor:
    """Softmax over slots and visible text; (B, Q, heads, dim)."""
    groups = query.shape[1] // key.shape[1]
    keys, values = (
        torch.cat([slot.expand(key.shape[0], -1, -1, -1), text], 2).repeat_interleave(groups, 1)
        for slot, text in zip(slots, (key, value), strict=True)
    )
    scores = query @ keys.transpose(2, 3) / math.sqrt(query.shape[-1])
    seen = torch.cat([torch.ones(*visible.shape[:-1], slots[0].shape[2], dtype=torch.bool), visible], -1)
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return (weights @ values).transpose(1, 2)


shapes = {
    "batch": st.integers(1, 3), "heads": st.integers(1, 2), "groups": st.integers(1, 2),
    "queries": st.integers(1, 5), "past": st.integers(0, 3), "slots": st.integers(1, 3),
    "shared": st.booleans(), "seed": st.integers(0, 99),
}  # fmt: skip


def tensors(
    batch: int, heads: int, groups: int, queries: int, keys: int, slots: int, shared: bool, seed: int
):
    torch.manual_seed(seed)
    rows = 1 if shared else batch
    query = torch.randn(batch, heads * groups, queries, 4, dtype=torch.float64)
    key, value = (torch.randn(batch, heads, keys, 4, dtype=torch.float64) for _ in range(2))
    memory = tuple(torch.randn(rows, heads, slots, 4, dtype=torch.float64) for _ in range(2))
    return query, key, value, memory


@settings(max_examples=40, deadline=None)
@given(**shapes)
def test_a_mask_keeps_its_meaning(
    batch: int, heads: int, groups: int, queries: int, past: int, slots: int, shared: bool, seed: int
) -> None:
    query, key, value, memory = tensors(batch, heads, groups, queries, past + queries, slots, shared, seed)
    causal = torch.ones(queries, past + queries, dtype=torch.bool).tril(past)
    padded = causal & (torch.rand(batch, 1, 1, past + queries) > 0.3)
    output, _ = attend_with_slots(
        sdpa_attention_forward, Attention(groups), query, key, value, pad_mask(padded, slots), memory
    )
    torch.testing.assert_close(output, by_hand(query, key, value, memory, padded))


@settings(max_examples=40, deadline=None)
@given(**shapes)
def test_without_a_mask_it_is_causal_from_the_first_token_of_the_text(
    batch: int, heads: int, groups: int, queries: int, past: int, slots: int, shared: bool, seed: int
) -> None:
    """As when a prompt fills a static cache: the columns behind the queries hold nothing yet."""
    query, key, value, memory = tensors(batch, heads, groups, queries, past + queries, slots, shared, seed)
    if queries == 1:  # one query sees every key that it is given
        visible = torch.ones(1, past + 1, dtype=torch.bool)
    else:
        visible = torch.ones(queries, past + queries, dtype=torch.bool).tril()
    output, _ = attend_with_slots(sdpa_attention_forward, Attention(groups), query, key, value, None, memory)
    torch.testing.assert_close(output, by_hand(query, key, value, memory, visible))


def test_a_float_mask_and_a_position_bias_have_zero_columns_for_slots() -> None:
    query, key, value, memory = tensors(2, 2, 1, 4, 4, 2, False, 0)
    causal = torch.ones(4, 4, dtype=torch.bool).tril()
    bias = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    additive = torch.where(causal, 0.0, -torch.inf).to(torch.float64)[None, None]
    module = Attention(1)
    expected, _ = attend_with_slots(
        sdpa_attention_forward, module, query, key, value, pad_mask(additive + bias, 2), memory
    )
    with_mask, _ = attend_with_slots(
        sdpa_attention_forward, module, query, key, value, pad_mask(additive, 2), memory, position_bias=bias
    )
    without_mask, _ = attend_with_slots(
        sdpa_attention_forward, module, query, key, value, None, memory, position_bias=bias
    )
    torch.testing.assert_close(with_mask, expected)
    torch.testing.assert_close(without_mask, expected)


def test_modules_without_a_slot_and_calls_without_memory_are_left_alone() -> None:
    query, key, value, slots = tensors(2, 2, 1, 4, 4, 2, False, 0)
    attention, module = routed(sdpa_attention_forward), Attention(1)
    plain = sdpa_attention_forward(module, query, key, value, None)[0]
    assert torch.equal(attention(module, query, key, value, None)[0], plain)
    assert not torch.equal(
        attention(module, query, key, value, None, latent_memory=Memory([slots]))[0], plain
    )
    del module._latent_layer
    assert torch.equal(attention(module, query, key, value, None, latent_memory=Memory([slots]))[0], plain)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_layers_share_one_padded_mask(dtype: torch.dtype) -> None:
    memory, mask = Memory([]), torch.ones(1, 1, 3, 3).tril().to(dtype)
    padded = memory._with_slots(mask, 2)
    assert padded is memory._with_slots(mask, 2)
    assert torch.equal(padded[..., 2:], mask)
    assert bool((padded[..., :2] == (dtype == torch.bool)).all())
