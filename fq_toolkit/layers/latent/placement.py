"""Where the text of a call is, where its positions begin, and how its embeddings take a latent.

The arguments of a forward come as a dictionary by name, ``arguments``, which these functions read and change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fq_toolkit.layers.latent.projector import computing_dtype, is_computed_in
from fq_toolkit.layers.latent.spec import LatentSpec

# How the names of inputs of pictures, films and sounds begin.
_MEDIA = ("pixel_values", "input_features", "image_", "video_", "audio_")


def keep_by_number(arguments: dict[str, Any], cache: Any) -> dict[str, Any]:
    """Return the arguments with ``logits_to_keep`` as the tokens' numbers, for which no model drops queries.

    Queries that are dropped without a mask lose their place in a causal attention. Gemma 4 knows that for the
    exact name "sdpa" only.
    """
    keep = arguments.get("logits_to_keep")
    # A single last query sees all keys, as it should; but in a static cache some of them are not filled yet.
    if isinstance(keep, int) and (keep > 1 or (keep and getattr(cache, "is_compileable", False))):
        text = arguments.get("input_ids")
        text = arguments["inputs_embeds"] if text is None else text
        arguments["logits_to_keep"] = torch.arange(text.shape[1] - keep, text.shape[1], device=text.device)
    return arguments


def find_text(model: Any, arguments: dict[str, Any]) -> tuple[Tensor | None, Tensor | None]:
    """Return the decoder's token ids or its embeddings; the other one is None.

    Raises:
        ValueError: neither or both were given.
    """
    prefix = model._latent_prefix
    ids, embeds = arguments.get(f"{prefix}input_ids"), arguments.get(f"{prefix}inputs_embeds")
    if prefix and ids is None and embeds is None and arguments.get("labels") is not None:
        # As the model itself does, but later than we need it.
        ids = arguments["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(
            labels=arguments["labels"]
        )
    if (ids is None) == (embeds is None):
        raise ValueError(
            f"give either {prefix}input_ids or {prefix}inputs_embeds"
            f"{', or labels,' if prefix else ''} with a latent; "
            f"got {'neither' if ids is None else 'both'}"
        )
    return ids, embeds


def place_text(model: Any, arguments: dict[str, Any], cache: Any, length: int, device: torch.device) -> None:
    """Let learned positions begin behind the slots, and refuse a text that is too long for them.

    In the released model a slot takes a position, so that the first token has position ``first_position``,
    the number of slots. Rotary and relative positions stay as they are: a slot has none.

    Args:
        model: of an injected class.
        arguments: by name; gains ``position_ids``.
        cache: of the text before, or None.
        length: number of tokens in this call.
        device: of the text.

    Raises:
        ValueError: a text that is longer than the table of positions.
    """
    spec: LatentSpec = model.latent_spec
    if spec.max_positions is None:
        return
    past: Any = cache.get_seq_length() if cache is not None else 0
    positions = arguments.get("position_ids") if model.takes_position_ids else None
    padding = model._latent_padding if positions is None else None
    # A static cache counts in a tensor, and to look at its number would break a compiled graph.
    if not (isinstance(past, Tensor) and torch.compiler.is_compiling()):
        room = spec.max_positions - spec.first_position - (0 if padding is None else padding + 1)
        end = int(past) + length
        if end > room and positions is not None:  # padding takes no position
            end = int(positions.max()) + 1
        if end > room:  # else the table would raise an IndexError
            raise _too_long(spec, end, room)
    if not spec.first_position and padding is None:
        return  # the model's own positions are right
    if padding is not None:  # RoBERTa counts real tokens from behind the padding's position
        ids = arguments.get("input_ids")
        real = torch.ones(1, length, dtype=torch.long, device=device) if ids is None else ids != padding
        positions = (real.cumsum(-1) + past) * real + padding
    elif positions is None:
        mask = arguments.get("attention_mask")
        if model.config.model_type == "opt" and mask is not None and mask.ndim == 2:
            # OPT counts real tokens, and adds the two rows before its first position itself.
            positions = (mask.long().cumsum(-1) * mask - 1).long()[:, -length:]
        else:
            positions = (torch.arange(length, device=device) + past)[None]
    arguments["position_ids"] = positions + spec.first_position


def _too_long(spec: LatentSpec, end: int, room: int) -> ValueError:
    """Return the error for a text that ends behind the last position that is left for text."""
    behind = f" behind {spec.first_position} slot(s)" if spec.first_position else ""
    return ValueError(
        f"a text of {end} tokens is too long: the model has {spec.max_positions} positions, "
        f"and {room} of them{behind} are left for text; shorten it"
    )


def add_to_embeddings(
    model: Any, arguments: dict[str, Any], ids: Tensor | None, embeds: Tensor | None, added: Tensor
) -> None:
    """Replace the ids by embeddings with the latent's part in them: ``h' = h + W_e z`` at every position.

    Source: arXiv 2004.04092, section 3.2, the embedding scheme. As in the released model, it is added
    before the positions and before dropout.

    Args:
        model: of an injected class.
        arguments: by name; changed in place.
        ids: (B, T), or None where there are embeddings.
        embeds: (B, T, hidden_size), or None where there are ids.
        added: (B or 1, hidden_size), the projected latent.
    """
    if embeds is None:
        embeds = _input_embeddings(model)(ids)
    prefix = model._latent_prefix
    arguments[f"{prefix}input_ids"] = None  # models refuse both
    arguments[f"{prefix}inputs_embeds"] = embeds + added[:, None].to(device=embeds.device, dtype=embeds.dtype)


def refuse_media(model: Any, arguments: Mapping[str, Any]) -> None:
    """Refuse pictures and sounds for a model that is given embeddings: it looks for their tokens.

    Raises:
        ValueError: an input of a picture, a film or a sound.
    """
    media = [name for name in arguments if name.startswith(_MEDIA) and arguments[name] is not None]
    if media:
        raise ValueError(
            f"mode={model.latent_spec.mode!r} gives {type(model).__name__} embeddings in place of tokens, "
            f'in which it cannot find the places of {media[0]}; inject with mode="memory" instead'
        )


def projection_dtype(model: Any, weight: Tensor, latent: Tensor) -> torch.dtype:
    """Return the precision in which the projections compute, whatever their weights are stored in."""
    if is_computed_in(weight.dtype):
        return weight.dtype
    return computing_dtype(_input_embeddings(model).weight, latent)


def _input_embeddings(model: Any) -> Any:
    """Return the table of the embeddings of the text that the forward takes."""
    return (model.get_decoder() if model._latent_prefix else model).get_input_embeddings()
