"""Latents that do not arrive: misspelt keywords, training steps without one, gradients that get lost.

Each would leave a model that trains and answers, and that has learnt nothing from its latents.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fq_toolkit.layers.latent.private import checkpoints_reentrantly
from fq_toolkit.layers.latent.projector import CHILD

logger = logging.getLogger("fq_toolkit")

#: Training steps without any latent before a warning.
PATIENCE = 3
_LETTERS = "abcdefghijklmnopqrstuvwxyz_"
#: What is one slip from "latent" or "latents" (a letter more, less, another, or two in the wrong order),
#: and the symbol that papers use.
_LOOKALIKES = frozenset(
    word[:i] + between + word[j:]
    for word in ("latent", "latents")
    for i in range(len(word) + 1)
    for j in range(i, min(i + 2, len(word)) + 1)
    for between in ("", *_LETTERS, word[i:j][::-1])
) | {"z", "zs"}


def refuse_lookalikes(model: Any, names: Mapping[str, Any]) -> None:
    """Refuse keywords that the forward of a model does not know and that were meant to be the latent.

    Forwards of transformers take any keyword, hand it on and ignore it.

    Raises:
        TypeError: a keyword that looks like ``latent``.
    """
    for name in names:
        if name == "latent" or name in model._latent_names:
            continue
        if name.lower() in _LOOKALIKES or "latent" in name.lower():
            raise TypeError(
                f"{type(model).__name__} has no keyword {name!r}, which would be ignored; "
                "the latent is passed as latent="
            )


def note_training(model: Any, latent: Tensor | None) -> None:
    """Warn once if training has no latent, or if its projections stay as they are.

    A training loop may leave the latent out now and then, so that only several steps without any are a
    mistake.
    """
    if not model.training or not torch.is_grad_enabled():
        return
    if torch.compiler.is_compiling():  # a count would compile every step anew
        if latent is None:
            warn_of_compiled_training()
        return
    if model._latent_steps is None:
        return
    if latent is not None:
        model._latent_steps = None
        # PEFT adds low ranks to a frozen projection, and keeps a copy of a module that it saves.
        theirs = ("lora_", "original_module")
        named = getattr(model, CHILD).named_parameters()
        own = [weight for name, weight in named if not any(part in name for part in theirs)]
        if own and not any(parameter.requires_grad for parameter in own):
            logger.warning(
                "a model is trained with a latent whose projections are frozen, and random unless they "
                'were trained before; with LoRA, pass modules_to_save=["%s"]',
                CHILD,
            )
        return
    model._latent_steps += 1
    if model._latent_steps == PATIENCE:
        model._latent_steps = None
        logger.warning(
            "%d training steps of an injected %s came without a latent, whose projections learn nothing "
            'then; pass latent=, and see that the collator keeps a column "latent"',
            PATIENCE,
            type(model).__name__,
        )


def warn_of_compiled_training() -> bool:
    """Warn while a training step is compiled, as the compiled step cannot.

    `injected_class` has the compiler take the result for a constant: it runs once per compilation, and no
    trace of it is in the graph.
    """
    logger.warning(
        "a training step of an injected model is compiled without a latent, whose projections learn nothing "
        'there; pass latent=, and see that the collator keeps a column "latent"'
    )
    return True


def refuse_reentrant_checkpointing(model: nn.Module) -> None:
    """Refuse reentrant gradient checkpointing, which sees only the gradients of positional arguments.

    The memory is a keyword, so that the gradient of the latent would be lost in silence.

    Raises:
        ValueError: a module checkpoints reentrantly, or does not tell.
    """
    if not model.training or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            if checkpoints_reentrantly(module):
                raise ValueError(
                    "reentrant gradient checkpointing loses the gradient of the latent; "
                    'enable it with gradient_checkpointing_kwargs={"use_reentrant": False}'
                )
            return  # transformers sets it for all modules alike


class _Touch(torch.autograd.Function):
    """The identity, with a zero gradient for parameters that took no part."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return value.view_as(value)  # a new tensor: autograd must not take it for the input

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return (grads[0], *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors))


def keep_in_graph(model: nn.Module, outputs: Any) -> Any:
    """Give the projections a zero gradient from a step without a latent, between ranks.

    DistributedDataParallel waits for a gradient of every parameter. A term ``0 * weight`` in the loss would
    do it as well, but turn an infinite weight into a loss of NaN.

    Args:
        model: of an injected class.
        outputs: of its forward without a latent.

    Returns:
        The same outputs, or outputs of the same values.
    """
    if not (model.training and torch.is_grad_enabled() and torch.distributed.is_available()):
        return outputs
    if torch.compiler.is_compiling() or not torch.distributed.is_initialized():
        return outputs
    parameters = [p for p in getattr(model, CHILD).parameters() if p.requires_grad]
    if not parameters:
        return outputs
    if isinstance(outputs, dict):
        for name in ("loss", "logits"):  # what a training loop differentiates
            value = outputs.get(name)
            if isinstance(value, Tensor) and value.requires_grad:
                outputs[name] = _Touch.apply(value, *parameters)
        return outputs
    return tuple(
        _Touch.apply(value, *parameters) if isinstance(value, Tensor) and value.requires_grad else value
        for value in outputs
    )
