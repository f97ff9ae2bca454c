"""Slots beside the text instead of in front of it: nothing is copied, nothing padded.

A softmax over slots and text is a weighted mean of the softmax over the slots and the one over the text, with
the weights ``exp(log-sum-exp of its scores)``. The kernels of sdpa know the log-sum-exp of the text, so that
the few scores of the slots can be added afterwards. The backward of the same kernels takes the log-sum-exp
of all scores instead and then returns the text's part of the gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fq_toolkit.layers.latent_projector import Slots

_aten = torch.ops.aten
# One query against keys of fewer numbers than this in all: copying them costs less than the small operations
# that merge a slot.
_WORTH_MERGING = 1 << 16


@functools.cache
def _sdpa() -> Callable[..., Any]:
    """The attention function of transformers that calls torch's."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return ALL_ATTENTION_FUNCTIONS["sdpa"]


def can_merge(
    base: Callable[..., Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    options: dict[str, Any],
) -> bool:
    """Whether :func:`merge_slots` can and should compute an attention: sdpa on a CPU, without a mask.

    Args:
        base: the attention of the model.
        query: (B, query heads, Q, key_dim).
        key: (B, heads, K, key_dim).
        value: (B, heads, K, value_dim).
        mask: of the attention.
        options: what the model passes to its attention.
    """
    one_more_token = query.shape[2] == 1
    if one_more_token and key.numel() < _WORTH_MERGING:  # first: it is asked for every layer of every token
        return False
    return (
        not torch.compiler.is_compiling()
        and mask is None
        and query.device.type == "cpu"
        and query.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and base is _sdpa()
        and not options.get("dropout")
        and options.get("position_bias") is None
        and options.get("cache") is None
        and options.get("softcap") is None
        and options.get("s_aux") is None
        and key.shape == value.shape
        and query.shape[1] == key.shape[1]
        and (one_more_token or query.shape[2] == key.shape[2])  # causal is from the upper left
    )


def merge_slots(
    query: Tensor, key: Tensor, value: Tensor, slots: Slots, *, causal: bool, scale: float | None
) -> Tensor:
    """Attention over text and slots.

    Args:
        query: (B, heads, Q, head_dim).
        key: (B, heads, K, head_dim), text only.
        value: (B, heads, K, head_dim), text only.
        slots: key and value of the slots, (B or 1, heads, slots, head_dim).
        causal: whether query i sees keys 0 to i only, and all slots.
        scale: of the scores; None for 1 / sqrt(head_dim).

    Returns:
        (B, Q, heads, head_dim).
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    slot_key, slot_value = slots[0].to(query), slots[1].to(query)
    if torch.is_grad_enabled():
        output: Tensor = _Merged.apply(query, key, value, slot_key, slot_value, causal, scale)
    else:
        output = _attend(query, key, value, slot_key, slot_value, causal, scale)[0]
    return output.transpose(1, 2).contiguous()


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    slot_key: Tensor,
    slot_value: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output like the query, and the log-sum-exp (B, heads, Q) of the text's scores and of the slots'.

    At one token a call, each small operation counts: one slot needs no softmax of its own.
    """
    text, of_text = torch._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, scale=scale
    )
    if slot_key.shape[2] == 1:
        of_slots, slot = torch.linalg.vecdot(query, slot_key).mul_(scale), slot_value
    else:
        scores = torch.matmul(query, slot_key.transpose(-1, -2)) * scale
        of_slots, slot = scores.logsumexp(-1), torch.matmul(scores.softmax(-1), slot_value)
    weight = (of_text - of_slots).sigmoid_().unsqueeze(-1)
    return torch.lerp(slot, text, weight), of_text, of_slots


class _Merged(torch.autograd.Function):
    """The same with a backward: the text's part by the kernel, the slots' part written out."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        slot_key: Tensor,
        slot_value: Tensor,
        causal: bool,
        scale: float,
    ) -> Tensor:
        output, of_text, of_slots = _attend(query, key, value, slot_key, slot_value, causal, scale)
        of_all = torch.logaddexp(of_text, of_slots)
        ctx.save_for_backward(query, key, value, slot_key, slot_value, output, of_all)
        ctx.causal, ctx.scale = causal, scale
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, slot_key, slot_value, output, of_all = ctx.saved_tensors
        into_query, into_key, into_value = _aten._scaled_dot_product_flash_attention_for_cpu_backward.default(
            grad, query, key, value, output, of_all, 0.0, ctx.causal, scale=ctx.scale
        )
        scores = torch.matmul(query, slot_key.transpose(-1, -2)) * ctx.scale
        shares = (scores - of_all[..., None]).exp_()
        # d score = share * (grad . value - grad . output), as in any softmax
        into_scores = torch.matmul(grad, slot_value.transpose(-1, -2)) - (grad * output).sum(-1, keepdim=True)
        into_scores = into_scores * shares * ctx.scale
        into_query = into_query + into_scores @ slot_key
        into_slot_key = (into_scores.transpose(-1, -2) @ query).sum_to_size(slot_key.shape)
        into_slot_value = (shares.transpose(-1, -2) @ grad).sum_to_size(slot_value.shape)
        return into_query, into_key, into_value, into_slot_key, into_slot_value, None, None
