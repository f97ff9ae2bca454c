"""The latent that a cache remembers: it is projected once per text, and not exchanged for another.

The cache holds keys and values of text that was made with a latent. To go on with another latent, or none,
would mix two texts in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fq_toolkit.layers.latent.private import version
from fq_toolkit.layers.latent.projector import Projected

# Attribute of a cache. It lies on the cache and not on the model, as a model writes several texts at a time.
_SEEN = "_latent_seen"
# Names that forwards of transformers have given the cache of their text, the newest first.
_NAMES = ("cache", "past_key_values", "cache_params")


def cache_name(parameters: tuple[str, ...]) -> str:
    """Return what a forward with these parameters calls its cache; ``past_key_values`` if unknown."""
    return next((name for name in _NAMES if name in parameters), "past_key_values")


def take_cache(arguments: dict[str, Any], own: str) -> Any:
    """Return the cache among the arguments of a forward, whatever the caller calls it.

    It is put under the forward's own name: before 5.24 transformers ignores what comes as ``cache``.

    Args:
        arguments: by name; changed in place.
        own: what the forward calls its cache.

    Raises:
        ValueError: two caches under two names.
    """
    for name in _NAMES:
        if name != own and is_text_cache(arguments.get(name)):
            cache = arguments.pop(name)
            if arguments.get(own) is None:
                arguments[own] = cache
            elif arguments[own] is not cache:
                raise ValueError(f"two caches were given, {own}= and {name}=; leave one of them out")
    return arguments.get(own)


def cache_of(outputs: Any) -> Any:
    """Return the cache among the outputs of a forward, which may be a dictionary or a tuple, or None."""
    values = outputs.values() if isinstance(outputs, Mapping) else outputs
    return next((value for value in values if is_text_cache(value)), None)


def is_text_cache(value: Any) -> bool:
    """Return whether a value holds keys and values of a text, as the caches of transformers do."""
    # By its methods: an encoder-decoder's cache, one of a state-space model and one of the user's own share
    # no class.
    return hasattr(value, "get_seq_length") or hasattr(value, "has_previous_state")


class _Seen(NamedTuple):
    """The latent of the text in a cache.

    Attributes:
        latent: as it was given when the text was begun.
        version: its `version` then, as a caller may write into it.
        projected: what was made of it; None if that must not be used again.
    """

    latent: Tensor
    version: int
    projected: Projected | None


def projected_before(cache: Any, latent: Tensor | None) -> Projected | None:
    """Return what was made of this latent when the cache was begun, or None if it must be projected.

    Args:
        cache: of the text, or None.
        latent: of this call, or None.

    Raises:
        ValueError: the cache was begun with another latent, or without one.
    """
    if cache is None or torch.compiler.is_compiling():  # a graph would be compiled anew for every latent
        return None
    seen: _Seen | None = getattr(cache, _SEEN, None)
    if seen is None and latent is None:
        return None
    if _is_empty(cache):  # it was reset: what it remembers is of another text, perhaps of other weights
        if seen is not None:
            delattr(cache, _SEEN)
        return None
    if seen is None or latent is None:
        had, has = ("with", "without") if latent is None else ("without", "with")
        # Without a latent also: a cache that was filled before the first token of the text.
        hint = (
            "; prefix tuning fills one, and cannot go with a latent: train prompts, LoRA, or only the latent"
            if latent is not None
            else ""
        )
        raise ValueError(
            f"the cache was begun {had} a latent and is continued {has} one; keep the latent for a whole "
            f"text, or begin a new cache{hint}"
        )
    # The usual case, token after token: the same tensor, unwritten, so that no number is compared.
    if seen.latent is latent and seen.version == version(latent):
        return seen.projected
    if seen.latent is latent or not _continues(seen.latent.to(latent), latent):
        raise ValueError(
            "the latent has changed in the middle of a cached text; "
            "keep it for a whole text, or begin a new cache"
        )
    return None


def _continues(begun: Tensor, latent: Tensor) -> bool:
    """Return whether a latent can be that of a cache, of whose texts some may have been copied or dropped."""
    if begun.shape == latent.shape:
        return torch.equal(begun, latent)
    if begun.shape[1:] != latent.shape[1:]:  # another form, as one per slot for one for all: not compared
        return True
    # Each row must be one of those before, as batch_select_indices and batch_repeat_interleave leave them.
    return bool((latent[:, None] == begun[None]).flatten(2).all(-1).any(1).all())


def _is_empty(cache: Any) -> bool:
    """Return whether a cache holds no text yet."""
    try:
        return int(cache.get_seq_length()) == 0
    except (AttributeError, ValueError):  # a state-space model's, which counts no tokens
        previous = getattr(cache, "has_previous_state", None)
        return previous is not None and not (previous() if callable(previous) else previous)


def remember(outputs: Any, cache: Any, latent: Tensor, projected: Projected | None) -> None:
    """Note in the cache which latent its text was made with.

    Args:
        outputs: of the forward, which may have made the cache.
        cache: that was given, or None.
        latent: of the text.
        projected: what was made of it; None if it leads into a graph that will be gone.
    """
    if torch.compiler.is_compiling():
        return
    if cache is None:
        cache = cache_of(outputs)
    if cache is not None and hasattr(cache, "__dict__"):
        kept = latent.detach() if latent.requires_grad else latent  # a cache must not keep a graph alive
        setattr(cache, _SEEN, _Seen(kept, version(latent), projected))
