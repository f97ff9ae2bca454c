"""The way of a model's attention through ours: registered implementations, and configs that name them.

transformers looks an attention function up by the name in a module's config. For each implementation that
memory can be put in front of there is one of ours, whose name has a prefix.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from fq_toolkit.layers.latent.attention.attend import Attention, eager_attention
from fq_toolkit.layers.latent.private import implementation, set_implementation

#: Name of the keyword that carries the `Memory` through the model's forward.
KEYWORD = "latent_memory"
#: Prefix of the registered names.
PREFIX = "latent_"
#: The implementations that memory can be put in front of.
ROUTED = ("eager", "sdpa")


@functools.cache
def register_implementations() -> None:
    """Register our attention functions, and with each the mask of the one that it stands for."""
    # Lazy: only injection needs transformers, and by then the model has loaded it.
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    for name in ROUTED:
        base = eager_attention if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
        AttentionInterface.register(PREFIX + name, routed(base))
        # Without it, a model would get the mask of an unknown implementation, which is none.
        AttentionMaskInterface.register(PREFIX + name, ALL_MASK_ATTENTION_FUNCTIONS[name])


def routed(base: Attention) -> Attention:
    """Return the attention function to register in front of ``base``."""

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        memory = options.pop(KEYWORD, None)
        if memory is None:
            return base(module, query, key, value, attention_mask, **options)
        return memory.attend(base, module, query, key, value, attention_mask, **options)

    return attention


def site_configs(model: Any) -> list[Any]:
    """Return the distinct configs of the attention modules that read memory."""
    return distinct(model.get_submodule(site.name).config for site in model.latent_spec.sites)


def distinct(items: Iterable[Any]) -> list[Any]:
    """Return the objects, each once: by identity, as different configs may compare equal."""
    return list({id(item): item for item in items}.values())


def route(configs: list[Any]) -> None:
    """Send the attention of models with these configs through ours.

    Raises:
        ValueError: an implementation that has no room for memory; no config is changed then.
    """
    names = [(implementation(config) or "eager").removeprefix(PREFIX) for config in configs]
    for name in names:
        if name not in ROUTED:
            raise no_room(name)
    restore(configs, [PREFIX + name for name in names])


def unroute(configs: list[Any]) -> list[str | None]:
    """Undo `route`, and return the names before, for `restore`."""
    names = [implementation(config) for config in configs]
    for config, name in zip(configs, names, strict=True):
        if name is not None:
            set_implementation(config, name.removeprefix(PREFIX))
    return names


def restore(configs: list[Any], names: Iterable[str | None]) -> None:
    """Give configs the names of implementations that they had."""
    for config, name in zip(configs, names, strict=True):
        set_implementation(config, name)


def no_room(name: str) -> ValueError:
    """Return the error for an attention implementation that memory cannot be put in front of."""
    return ValueError(
        f"attention implementation {name!r} has no room for memory slots; use one of {', '.join(ROUTED)}: "
        'model.set_attn_implementation("sdpa")'
    )
