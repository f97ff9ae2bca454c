"""Where families of models differ (decoder, embeddings, learned positions), and which are refused."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from fq_toolkit.layers.latent.private import is_offloaded
from fq_toolkit.layers.latent.replaced_forward import suspicion

# Tables of learned positions, by the names that models give them: GPT-2, OPT and BART, RoBERTa.
_POSITION_TABLES = ("wpe", "embed_positions", "position_embeddings")


def check_model(model: Any) -> None:
    """Refuse what cannot be injected in any mode.

    Raises:
        TypeError: not a model of transformers.
        ValueError: weights that are offloaded, or a model that does not generate text from tokens or
        embeddings.
    """
    from transformers import PreTrainedModel  # lazy: only injection needs transformers

    if not isinstance(model, PreTrainedModel):
        inner = (
            ": inject into the base model first and wrap it afterwards"
            if isinstance(model, nn.Module)
            else ""
        )
        raise TypeError(f"model must be a model of transformers, got {type(model).__name__}{inner}")
    if model.device.type == "meta" and is_offloaded(model):
        raise ValueError(
            f"the weights of this {type(model).__name__} are offloaded by accelerate; "
            "inject first and offload afterwards"
        )
    if not model.can_generate():
        raise ValueError(
            f"{type(model).__name__} does not generate text; inject into the whole model with a "
            "language-modelling head, such as AutoModelForCausalLM or AutoModelForSeq2SeqLM loads, not into "
            "an encoder, a decoder without its head or another part of it"
        )
    if "inputs_embeds" not in forward_parameters(type(model)):
        raise unsupported(model, "its forward takes no inputs_embeds", suggest=False)


def unsupported(model: Any, reason: str, suggest: bool = True) -> ValueError:
    """Return the error for an architecture in which memory, or a latent of any kind, cannot work.

    Args:
        model: that was refused.
        reason: what its architecture lacks.
        suggest: whether the embedding mode works in it.
    """
    hint = '; use mode="embedding", which works there' if suggest else ""
    return ValueError(
        f"{'memory' if suggest else 'a latent'} cannot work in {type(model).__name__} "
        f"(model_type {model.config.model_type!r}): {reason}{suspicion(model)}{hint}"
    )


def forward_parameters(kind: type) -> dict[str, inspect.Parameter]:
    """Return the parameters of the forward of a class of models, by name and in their order."""
    return dict(inspect.signature(kind.forward).parameters)  # type: ignore[attr-defined]


def count_layers(model: Any) -> int:
    """Return the number of layers of the decoder, as the config counts them."""
    # BART and T5 have names of their own; their num_hidden_layers is the encoder's.
    for name in ("decoder_layers", "num_decoder_layers") if model.config.is_encoder_decoder else ():
        if getattr(model.config, name, None) is not None:
            return getattr(model.config, name)
    return model.config.get_text_config(decoder=True).num_hidden_layers


def text_embeddings(model: Any) -> Any:
    """Return the table of the decoder's input embeddings."""
    return _decoder(model).get_input_embeddings()


def position_table(model: Any) -> nn.Embedding | None:
    """Return the decoder's table of learned positions, None if they are rotary, relative or computed."""
    for name, module in _decoder(model).named_modules():
        if name.rpartition(".")[2] in _POSITION_TABLES and isinstance(module, nn.Embedding):
            return module
    return None


def learned_positions(model: Any) -> int | None:
    """Return how many positions the decoder has learned, None if it has no table of them."""
    if position_table(model) is None:
        return None
    # By the config and not by the rows of the table: OPT's and BART's have some more, before the first
    # position.
    return getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)


def _decoder(model: Any) -> Any:
    """Return the part of a model that writes the text: the model itself, if it has no encoder."""
    return model.get_decoder() if model.config.is_encoder_decoder else model
