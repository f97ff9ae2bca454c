"""What a cache knows of the latent of its text: it is projected once, and not exchanged for another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fq_toolkit.layers.latent.projector import Projected

_SEEN = "_latent_seen"
# What forwards of transformers have called the cache of their text, the newest name first.
_NAMES = ("cache", "past_key_values", "cache_params")


def cache_name(parameters: tuple[str, ...]) -> str:
    """What a forward with these parameters calls the cache; the oldest name where it hands all on."""
    return next((name for name in _NAMES if name in parameters), "past_key_values")


def take_cache(given: dict[str, Any], own: str) -> Any:
    """The cache among the arguments of a forward, whatever the caller calls it.

    It is put under the forward's own name: before 5.24 transformers ignores what comes as ``cache``.

    Args:
        given: arguments by name; changed in place.
        own: what the forward calls its cache.
    """
    for name in _NAMES:
        if name != own and is_text_cache(given.get(name)):
            value = given.pop(name)
            if given.get(own) is None:
                given[own] = value
            elif given[own] is not value:
                raise ValueError(f"two caches were given, {own}= and {name}=; leave one of them out")
    return given.get(own)


def cache_of(outputs: Any) -> Any:
    """The cache that a forward returned, in an output of any kind or in a tuple."""
    values = outputs.values() if isinstance(outputs, Mapping) else outputs
    return next((value for value in values if is_text_cache(value)), None)


def is_text_cache(value: Any) -> bool:
    """Whether something holds keys and values of a text, as the caches of transformers do."""
    return hasattr(value, "get_seq_length") or hasattr(value, "has_previous_state")


class _Seen(NamedTuple):
    """What a cache knows of the latent of its text."""

    latent: Tensor
    version: int
    projected: Projected | None


def _version(tensor: Tensor) -> int:
    """A number that changes when the tensor is written to."""
    return 0 if tensor.is_inference() else tensor._version


def projected_before(cache: Any, latent: Tensor | None) -> Projected | None:
    """What was made of this latent when the cache was begun, if it is still at hand.

    Raises:
        ValueError: the cache was begun with another latent, or without one.
    """
    if cache is None or torch.compiler.is_compiling():
        return None
    seen: _Seen | None = getattr(cache, _SEEN, None)
    if seen is None and latent is None:
        return None
    if _is_empty(cache):  # what it knows is of another text, perhaps of other weights
        if seen is not None:
            delattr(cache, _SEEN)
        return None
    if seen is None or latent is None:
        had, has = ("with", "without") if latent is None else ("without", "with")
        # A cache that somebody has filled before the first token of the text.
        hint = (
            "; prefix tuning fills one, and cannot go with a latent: train prompts, LoRA, or the latent alone"
            if latent is not None
            else ""
        )
        raise ValueError(
            f"the cache was begun {had} a latent and is continued {has} one; keep the latent for a whole "
            f"text, or begin a new cache{hint}"
        )
    if seen.latent is latent and seen.version == _version(latent):
        return seen.projected
    if seen.latent is latent or not _continues(seen.latent.to(latent), latent):
        raise ValueError(
            "the latent has changed in the middle of a cached text; "
            "keep it for a whole text, or begin a new cache"
        )
    return None


def _continues(begun: Tensor, latent: Tensor) -> bool:
    """Whether a latent can be the one of a cache, of whose texts some may be copied or gone since."""
    if begun.shape == latent.shape:
        return torch.equal(begun, latent)
    if begun.shape[1:] != latent.shape[1:]:
        return True
    return bool((latent[:, None] == begun[None]).flatten(2).all(-1).any(1).all())


def _is_empty(cache: Any) -> bool:
    """Whether a cache holds no text yet."""
    try:
        return int(cache.get_seq_length()) == 0
    except (AttributeError, ValueError):  # a state-space model's, which counts no tokens
        previous = getattr(cache, "has_previous_state", None)
        return previous is not None and not (previous() if callable(previous) else previous)


def remember(outputs: Any, cache: Any, latent: Tensor, projected: Projected | None) -> None:
    """Note in the cache which latent its text was made with."""
    if torch.compiler.is_compiling():
        return
    if cache is None:
        cache = cache_of(outputs)
    if cache is not None and hasattr(cache, "__dict__"):
        kept = latent.detach() if latent.requires_grad else latent
        setattr(cache, _SEEN, _Seen(kept, _version(latent), projected))
