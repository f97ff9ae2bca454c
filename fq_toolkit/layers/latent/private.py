"""The private names of torch, transformers, accelerate and PEFT that a latent needs, each with its way out.

They were looked up in torch 2.13, transformers 5.17, 5.23 and 5.24 (in all of them unless a version is named)
and accelerate 1.15. Where a name is gone, the function does what its docstring says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

#: Where accelerate keeps the forward that a hook, as of its offloading, was put around.
HOOKED_FORWARD = "_old_forward"
#: Where accelerate keeps forwards that it has put hooks or autocast around. A forward kept under another
#: name is as any other that somebody assigned: a call with a latent finds out whether it leads to ours.
KEPT_FORWARDS = (HOOKED_FORWARD, "_original_forward")


def implementation(config: Any) -> str | None:
    """Return the name of the attention implementation in a config, which has no public name there."""
    return getattr(config, "_attn_implementation", None)


def set_implementation(config: Any, name: str | None) -> None:
    """Set the name of the attention implementation of one config.

    The public `set_attn_implementation` is a model's, and sets all of its configs. Without the first name the
    property behind it is set, which does the same for sub-configs.
    """
    if hasattr(config, "_attn_implementation_internal"):
        config._attn_implementation_internal = name
    else:
        config._attn_implementation = name


def can_set_implementation(model: Any) -> bool:
    """Return whether the attention of a model goes through the interface of transformers.

    Without the name the answer is True, and the probing forward finds it out.
    """
    ask = getattr(type(model), "_can_set_attn_implementation", None)
    return True if ask is None else bool(ask())


def upcast_attention(module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """Return GPT-2's attention in float32, which it computes for the exact name "eager" only.

    Raises:
        ValueError: this version of transformers has none; the public way is not to ask for it.
    """
    function = getattr(module, "_upcast_and_reordered_attn", None)
    if function is None:
        raise ValueError(
            "this version of transformers has no reordered and upcast attention to put memory in front of; "
            "set reorder_and_upcast_attn=False in the model's config"
        )
    return function


def drops_queries(model: nn.Module) -> bool:
    """Return whether a model drops queries of its last layers by itself (Gemma 4; from transformers 5.23).

    Without the name no model does.
    """
    return any(hasattr(module, "_maybe_slice_kv_shared_inputs") for module in model.modules())


def checkpoints_reentrantly(module: nn.Module) -> bool:
    """Return whether a module's gradient checkpointing is reentrant, or does not tell.

    The public `gradient_checkpointing_enable` sets it, and nothing public reads it: without the name the
    answer is True, as a gradient that is lost in silence is worse than an error.
    """
    function = getattr(module, "_gradient_checkpointing_func", None)
    return getattr(function, "keywords", {}).get("use_reentrant") is not False


def has_adapter(model: Any) -> bool:
    """Return whether transformers has loaded an adapter of PEFT into a model; False without the name."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def is_offloaded(model: Any) -> bool:
    """Return whether accelerate has put a hook on a model; False without the name."""
    return hasattr(model, "_hf_hook")


def ignored_when_loading(kind: type) -> list[str]:
    """Return the patterns of unexpected weights that a class of models passes over; none without it."""
    return list(getattr(kind, "_keys_to_ignore_on_load_unexpected", None) or ())


def version(tensor: Tensor) -> int:
    """Return a number that changes when a tensor is written to.

    Inference tensors have none, and neither may be written outside of inference mode: always 0.
    """
    return 0 if tensor.is_inference() else tensor._version


_FLASH = "_scaled_dot_product_flash_attention_for_cpu"
#: Whether torch has the kernels of `flash_on_cpu` and of its backward. Without them slots are put in front
#: of the text, for the public `scaled_dot_product_attention`.
HAS_FLASH_ON_CPU = hasattr(torch, _FLASH) and hasattr(torch.ops.aten, f"{_FLASH}_backward")


def flash_on_cpu(
    query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Compute attention with its log-sum-exp, which the public function does not return.

    Args:
        query: (B, heads, Q, head_dim).
        key: (B, heads, K, head_dim).
        value: (B, heads, K, head_dim).
        causal: whether query i sees keys 0 to i only.
        scale: of the scores.

    Returns:
        Output like the query, and the log-sum-exp of the scores (B, heads, Q).
    """
    return torch._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, scale=scale)


def flash_on_cpu_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of query, key and value from an output and a log-sum-exp."""
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    return backward(grad, query, key, value, output, logsumexp, 0.0, causal, scale=scale)
