"""Slots beside the text instead of in front of it: nothing is copied, nothing padded.

A softmax over slots and text is a weighted mean of the softmax over the slots and the one over the text,
each weighted by the ``exp`` of the log-sum-exp of its scores. torch's kernel on the CPU returns the
log-sum-exp of the text, so that the few scores of the slots can be added afterwards. Given the log-sum-exp
of all scores instead, its backward returns the text's part of the gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fq_toolkit.kernels import private as torch_private
from fq_toolkit.kernels.decode import can_attend_one
from fq_toolkit.layers.latent.attention.slots import Slots
from fq_toolkit.layers.latent.private import HAS_FLASH_ON_CPU, flash_on_cpu, flash_on_cpu_backward


def can_decode(
    base: Callable[..., Any], query: Tensor, key: Tensor, value: Tensor, slots: Slots, options: dict[str, Any]
) -> bool:
    """Return whether the compiled kernel can compute one query without a mask.

    Every layer asks for every token, when the weights have pushed all else out of the processor's caches, so
    that each line here is measurable.

    Args:
        base: the attention of the model.
        query: (B, query heads, 1, key_dim).
        key: (B, heads, K, key_dim).
        value: (B, heads, K, value_dim).
        slots: key and value of the slots.
        options: what the model passes to its attention.
    """
    return (
        not torch.compiler.is_compiling()
        and can_attend_one(query, key, value, slots)
        and _is_plain_sdpa(base, options)
    )


def _is_plain_sdpa(base: Callable[..., Any], options: dict[str, Any]) -> bool:
    """Return whether an attention is only a softmax of scaled products, in the dtype of its tensors."""
    return (
        base is _sdpa()
        and not options.get("dropout")
        and options.get("position_bias") is None
        and options.get("cache") is None
        and options.get("softcap") is None
        and options.get("s_aux") is None
        and not torch.is_autocast_enabled("cpu")
    )


@functools.cache
def _sdpa() -> Callable[..., Any]:
    """Return the attention function of transformers that calls torch's."""
    # Lazy: the layer is imported without transformers.
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
    """Return whether `merge_slots` can and should compute an attention: sdpa on a CPU, without a mask.

    Args:
        base: the attention of the model.
        query: (B, query heads, Q, key_dim).
        key: (B, heads, K, key_dim).
        value: (B, heads, K, value_dim).
        mask: of the attention.
        options: what the model passes to its attention.
    """
    return (
        mask is None
        and HAS_FLASH_ON_CPU
        and not torch.compiler.is_compiling()
        and not torch_private.under_transform()
        and query.device.type == "cpu"
        and query.dtype in (torch.float32, torch.float64)  # halves would be rounded before the merge
        and _is_plain_sdpa(base, options)
        and key.shape == value.shape
        and query.shape[1] == key.shape[1]
        and (query.shape[2] == 1 or query.shape[2] == key.shape[2])  # causal is from the upper left
        and query.stride(3) == key.stride(3) == value.stride(3) == 1  # as the kernel assumes
    )


def merge_slots(
    query: Tensor, key: Tensor, value: Tensor, slots: Slots, *, causal: bool, scale: float | None
) -> Tensor:
    """Compute attention over text and slots without a copy of the text.

    With ``a`` the log-sum-exp of the text's scores and ``b`` that of the slots', the output is
    ``s text + (1 - s) slots``, ``s = sigmoid(a - b)``.

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
    slot_key = slots[0].to(query)
    slot_value = slot_key if slots[1] is slots[0] else slots[1].to(query)  # share_kv: convert once
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
    """Return the output, the text's log-sum-exp (B, heads, Q), and how far it is above that of the slots."""
    text, of_text = flash_on_cpu(query, key, value, causal, scale)
    # At one token a call each small operation counts, and a single slot needs no softmax of its own.
    if slot_key.shape[2] == 1:
        above, slot = torch.sub(of_text, torch.linalg.vecdot(query, slot_key), alpha=scale), slot_value
    else:
        scores = torch.matmul(query, slot_key.transpose(-1, -2)) * scale
        above, slot = of_text - scores.logsumexp(-1), torch.matmul(scores.softmax(-1), slot_value)
    return torch.lerp(slot, text, above.sigmoid().unsqueeze(-1)), of_text, above


class _Merged(torch.autograd.Function):
    """`_attend` with a backward: the text's part by the kernel, the slots' part written out."""

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
        output, of_text, above = _attend(query, key, value, slot_key, slot_value, causal, scale)
        # log(exp a + exp b) = a - log sigmoid(a - b), which overflows nowhere.
        of_all = of_text - F.logsigmoid(above)
        ctx.save_for_backward(query, key, value, slot_key, slot_value, output, of_all)
        ctx.causal, ctx.scale = causal, scale
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, slot_key, slot_value, output, of_all = ctx.saved_tensors
        # The kernel recomputes the shares of the text as exp(score - log-sum-exp): with the log-sum-exp of
        # all scores these are its shares beside the slots, and the gradients are exact.
        into_query, into_key, into_value = flash_on_cpu_backward(
            grad, query, key, value, output, of_all, ctx.causal, ctx.scale
        )
        scores = torch.matmul(query, slot_key.transpose(-1, -2)) * ctx.scale
        shares = (scores - of_all[..., None]).exp_()
        # d score = share * (grad . value - grad . output), as in any softmax
        into_scores = torch.matmul(grad, slot_value.transpose(-1, -2)) - (grad * output).sum(-1, keepdim=True)
        into_scores = into_scores * shares * ctx.scale
        into_query = into_query + into_scores @ slot_key
        # One latent for all texts makes slots with a batch of 1, whose gradient is the sum over the texts.
        into_slot_key = (into_scores.transpose(-1, -2) @ query).sum_to_size(slot_key.shape)
        into_slot_value = (shares.transpose(-1, -2) @ grad).sum_to_size(slot_value.shape)
        return into_query, into_key, into_value, into_slot_key, into_slot_value, None, None
