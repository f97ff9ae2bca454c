"""Forwards of two tokens that show what a model does with embeddings and memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fq_toolkit.layers.latent.attention.attend import Attention, attend_with_slots
from fq_toolkit.layers.latent.attention.route import (
    KEYWORD,
    distinct,
    register_implementations,
    restore,
    route,
)
from fq_toolkit.layers.latent.attention.slots import pad_mask
from fq_toolkit.layers.latent.families import text_embeddings, unsupported
from fq_toolkit.layers.latent.private import can_set_implementation, implementation
from fq_toolkit.layers.latent.projector import CHILD
from fq_toolkit.layers.latent.replaced_forward import suspicion


class Reading(NamedTuple):
    """What the probe saw of an attention.

    Attributes:
        module: the attention.
        heads: its key and value heads.
        key_dim: channels of a key head.
        value_dim: channels of a value head.
        reads: whether a slot changed its output.
    """

    module: nn.Module
    heads: int
    key_dim: int
    value_dim: int
    reads: bool


class Probe:
    """Takes the place of a `Memory` in one forward, to see which attention could read one.

    Attributes:
        readings: one per causal self-attention, in the order in which they ran.
    """

    def __init__(self) -> None:
        self.readings: list[Reading] = []

    def attend(
        self,
        base: Attention,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute attention as it is, and compare it with what a slot would make of it.

        Raises:
            TypeError: an attention that leaves it to its implementation to mask keys by an index. It does so
                itself only for the exact names "eager" and "sdpa", and would do so for no name of ours.
        """
        if any(name.endswith("indices") and value is not None for name, value in options.items()):
            raise TypeError("it chooses keys by an index, which only its own implementations follow")
        plain = base(module, query, key, value, attention_mask, **options)
        causal = getattr(module, "is_causal", False) and not getattr(module, "is_cross_attention", False)
        # Some models run a layer several times; it is one reader all the same.
        if causal and all(reading.module is not module for reading in self.readings):
            # A value outside the hull of the others moves every average that includes it.
            far = 1 + value.detach().abs().amax()
            slots = (torch.zeros_like(key[:, :, :1]), torch.zeros_like(value[:, :, :1]) + far)
            mask = None if attention_mask is None else pad_mask(attention_mask, 1)
            with_slot = attend_with_slots(base, module, query, key, value, mask, slots, **options)[0]
            reads = plain[0].is_meta or not torch.equal(with_slot, plain[0])
            self.readings.append(Reading(module, key.shape[1], key.shape[3], value.shape[3], reads))
        return plain


def check_embeddings(model: Any) -> None:
    """See that a text may be given as embeddings that are no token's.

    Raises:
        ValueError: the model needs the tokens.
    """
    tokens = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    try:
        with _evaluating(model), torch.no_grad():
            embeds = text_embeddings(model)(tokens) + 1
            if model.config.is_encoder_decoder:
                inputs = {"input_ids": tokens, "decoder_inputs_embeds": embeds}
            else:
                inputs = {"inputs_embeds": embeds}
            if not tokens.is_meta:  # not every model runs on the meta device
                model(**inputs, use_cache=False)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"a latent cannot be added to the embeddings of {type(model).__name__} "
            f"(model_type {model.config.model_type!r}), which needs the tokens themselves: "
            f"{error}{suspicion(model)}; "
            'use mode="memory"'
        ) from error


def find_readers(model: Any) -> list[Reading]:
    """Return the attention that can read memory, in the order of the layers.

    Raises:
        ValueError: memory cannot work in this architecture, or not with its attention implementation.
    """
    from transformers import PreTrainedModel  # lazy: only injection needs transformers

    if not can_set_implementation(model):
        raise unsupported(model, "its attention does not go through the interface of transformers")
    register_implementations()
    probe = Probe()
    pretrained: Any = PreTrainedModel
    configs = distinct(module.config for module in model.modules() if isinstance(module, pretrained))
    names = [implementation(config) for config in configs]
    tokens = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    inputs: dict[str, Any] = {"input_ids": tokens, "use_cache": tokens.is_meta}
    # With a mask, or without a cache, transformers looks at numbers in tensors, which on the meta device
    # have none.
    if not tokens.is_meta:
        inputs["attention_mask"] = torch.ones_like(tokens)
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens
    route(configs)
    try:
        with _evaluating(model), torch.no_grad():
            model(**inputs, **{KEYWORD: probe})
    except TypeError as error:
        raise unsupported(model, f"its attention takes no memory ({error})") from error
    except RuntimeError as error:
        if not tokens.is_meta:
            raise
        raise ValueError(
            f"{type(model).__name__} does not run on the meta device, so that its layers cannot be tried "
            f"({error}); give it weights first, and inject then"
        ) from error
    finally:
        restore(configs, names)
    if not probe.readings:  # any are enough: hybrids keep memory in the attention layers that they have
        raise unsupported(model, _why_no_readers(model))
    return probe.readings


def _why_no_readers(model: Any) -> str:
    """Return why no attention of a model asked for memory."""
    kinds = {type(module).__name__ for module in model.modules() if "Attention" in type(module).__name__}
    if not kinds:
        return "it has no attention layers"
    return (
        f"its attention ({', '.join(sorted(kinds))}) computes by itself or without a causal mask, and not "
        "through the attention interface of transformers"
    )


def check_call(model: Any) -> None:
    """See by a call with a latent that every layer gets its slots, whatever forward was assigned.

    Raises:
        RuntimeError: another forward than ours ran.
        ValueError: the memory does not arrive in these layers.
    """
    spec = model.latent_spec
    tokens = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens
    read: set[int] = set()

    class NotedSlots(list[Any]):
        """The slots of all layers, noting which layers take theirs."""

        def __getitem__(self, layer: Any) -> Any:
            read.add(layer)
            return super().__getitem__(layer)

    def note(_module: nn.Module, _inputs: Any, projected: Any) -> Any:
        if projected.memory is None:
            return projected
        return projected._replace(memory=NotedSlots(projected.memory))

    handle = getattr(model, CHILD).register_forward_hook(note)
    latent = torch.zeros(1, spec.latent_size, device=model.device)
    try:
        with _evaluating(model), torch.no_grad():
            model(**inputs, latent=latent, use_cache=False)
    finally:
        handle.remove()
    unread = [site.name for number, site in enumerate(spec.sites) if number not in read]
    if unread:
        raise ValueError(
            f"a call of this {type(model).__name__} with a latent does not reach {', '.join(unread)}: the "
            "forward that was assigned to it drops keywords that it does not know; take it back first"
        )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Run a block in eval mode, and put the mode of each module back: parts may have differed."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
