"""What an injected model does besides what its own class does."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fq_toolkit.layers.latent.attention import KEYWORD, PREFIX, ROUTED, Memory
from fq_toolkit.layers.latent.cache import cache_name, projected_before, remember, take_cache
from fq_toolkit.layers.latent.forward import checked, is_replaced, set_attribute
from fq_toolkit.layers.latent.guidance import LatentGuidance
from fq_toolkit.layers.latent.projector import MARK, check_latent, computing_dtype, is_computed_in, marked
from fq_toolkit.layers.latent.spec import LatentSpec

logger = logging.getLogger("fq_toolkit")

#: Name of the child module that holds the trainable part.
CHILD = "latent_injection"
#: Steps of training without any latent after which that is said.
PATIENCE = 3
_LETTERS = "abcdefghijklmnopqrstuvwxyz_"
#: What is one slip from "latent" or "latents", and the symbol that papers use.
#: How the inputs of pictures, films and sounds begin.
_MEDIA = ("pixel_values", "input_features", "image_", "video_", "audio_")
_LOOKALIKES = frozenset(
    word[:i] + between + word[j:]
    for word in ("latent", "latents")
    for i in range(len(word) + 1)
    for j in range(i, min(i + 2, len(word)) + 1)
    for between in ("", *_LETTERS, word[i:j][::-1])
) | {"z", "zs"}


class LatentModel:
    """Mixed in front of a transformers model's class by `inject_latent`.

    The subclass that mixes it in sets ``_latent_base``, the class of the model, ``_latent_names``, the
    parameters of its forward, and ``_latent_prefix``, how those of them begin that are the decoder's.
    """

    #: The learned position of padding, in models that have one and count texts from behind it.
    _latent_padding: int | None = None
    #: Whether the model drops queries of its last layers by itself, where sdpa's name allows it (Gemma 4).
    _latent_slices: bool = False
    #: Whether continuous batching is choosing its attention implementation, which needs no room for memory.
    _latent_pages: bool = False
    #: The forward that ours goes around, where one was assigned to the model before the injection.
    _latent_inner: Callable[..., Any] | None = None
    #: What a call waits for to be taken away, by our forward.
    _latent_waiting: list[None] | None = None
    #: Training forwards without a latent so far; None once one has come, or its absence was said.
    _latent_steps: int | None = 0

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the model, and fail where a latent is given and another forward than ours ran."""
        run = super().__call__  # type: ignore[misc]
        return checked(self, run, *args, **kwargs) if is_replaced(self) else run(*args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a forward that is assigned is seen to lead to ours."""
        if name == "forward":
            set_attribute(self, name, value, super().__setattr__)  # type: ignore[arg-type]
        else:
            super().__setattr__(name, value)

    def _forward_with(
        self: Any,
        plain: Callable[..., Any],
        args: tuple[Any, ...],
        latent: Tensor | None,
        kwargs: dict[str, Any],
    ) -> Any:
        """The forward of the model, with the latent in it where there is one."""
        if self._latent_waiting is not None:
            self._latent_waiting = None
        self._refuse_lookalikes(kwargs)
        self._note_training(latent)
        given = dict(zip(self._latent_names, args, strict=False)) | kwargs
        if latent is not None:
            check_latent(latent, self.latent_spec)
        cache = take_cache(given, self.cache_name)
        if self._latent_slices:
            args, kwargs = (), _keep_by_number(given, cache)
        projector = getattr(self, CHILD)
        known = projected_before(cache, latent)
        in_graph = torch.is_grad_enabled() or self.training
        if in_graph:  # what was kept without a graph leads nowhere
            known = None
        if latent is None:
            return _keep_in_graph(self, plain(*args, **kwargs))
        spec: LatentSpec = self.latent_spec
        if spec.has_embedding:
            self._refuse_pictures(given)
        ids, embeds = self._text(given)
        batch, length = (ids if embeds is None else embeds).shape[:2]
        if latent.shape[0] not in (1, batch):
            raise ValueError(
                f"latent has {latent.shape[0]} row(s) and the text {batch}; "
                "give one latent per text, or one for all"
            )
        remembered = known is not None
        if known is None:
            like = next(projector.parameters(), latent)
            device = latent.device if like.is_meta else like.device  # accelerate fetches offloaded weights
            known = projector(latent.to(device=device, dtype=self._computing_dtype(like, latent)))
        self._place_text(given, cache, length, (ids if embeds is None else embeds).device)
        if spec.has_embedding:
            self._add_to_embeddings(given, ids, embeds, known.embedding)
        if known.memory is not None:
            self._check_route()
            self._check_checkpointing()
            given[KEYWORD] = Memory(known.memory)
        outputs = plain(**given)
        if not remembered:
            remember(outputs, cache, latent, None if in_graph else known)
        return outputs

    def _refuse_pictures(self: Any, given: Mapping[str, Any]) -> None:
        """Refuse pictures and sounds where the model is given embeddings: it looks for their tokens."""
        found = [name for name in given if name.startswith(_MEDIA) and given[name] is not None]
        if found:
            raise ValueError(
                f"mode={self.latent_spec.mode!r} gives {type(self).__name__} embeddings in place of tokens, "
                f'in which it cannot find the places of {found[0]}; inject with mode="memory" instead'
            )

    def _computing_dtype(self: Any, weight: Tensor, latent: Tensor) -> torch.dtype:
        """The precision in which the projections compute, whatever their weights are stored in."""
        if is_computed_in(weight.dtype):
            return weight.dtype
        decoder = self.get_decoder() if self._latent_prefix else self
        return computing_dtype(decoder.get_input_embeddings().weight, latent)

    def _refuse_lookalikes(self: Any, names: Mapping[str, Any]) -> None:
        """Refuse keywords that no forward knows and that were meant to be the latent."""
        for name in names:
            if name == "latent" or name in self._latent_names:
                continue
            if name.lower() in _LOOKALIKES or "latent" in name.lower():
                raise TypeError(
                    f"{type(self).__name__} has no keyword {name!r}, which would be ignored; "
                    "the latent is passed as latent="
                )

    def _note_training(self: Any, latent: Tensor | None) -> None:
        """Say it, once, where training has no latent, or projections that stay as they are."""
        if not self.training or not torch.is_grad_enabled():
            return
        if torch.compiler.is_compiling():  # a count would compile every step anew
            if latent is None:
                _compiled_without()
            return
        if self._latent_steps is None:
            return
        if latent is not None:
            self._latent_steps = None
            # PEFT adds low ranks to a frozen projection, and keeps a copy of a module that it saves.
            theirs = ("lora_", "original_module")
            named = getattr(self, CHILD).named_parameters()
            own = [weight for name, weight in named if not any(part in name for part in theirs)]
            if own and not any(parameter.requires_grad for parameter in own):
                logger.warning(
                    "a model is trained with a latent whose projections are frozen, and random unless they "
                    'were trained before; with LoRA, pass modules_to_save=["%s"]',
                    CHILD,
                )
            return
        self._latent_steps += 1
        if self._latent_steps == PATIENCE:
            self._latent_steps = None
            logger.warning(
                "%d training steps of an injected %s came without a latent, whose projections learn nothing "
                'then; pass latent=, and see that the collator keeps a column "latent"',
                PATIENCE,
                type(self).__name__,
            )

    def _text(self: Any, given: dict[str, Any]) -> tuple[Tensor | None, Tensor | None]:
        """The decoder's token ids or its embeddings."""
        prefix = self._latent_prefix
        ids, embeds = given.get(f"{prefix}input_ids"), given.get(f"{prefix}inputs_embeds")
        if prefix and ids is None and embeds is None and given.get("labels") is not None:
            ids = given["decoder_input_ids"] = self.prepare_decoder_input_ids_from_labels(
                labels=given["labels"]
            )
        if (ids is None) == (embeds is None):
            raise ValueError(
                f"give either {prefix}input_ids or {prefix}inputs_embeds"
                f"{', or labels,' if prefix else ''} with a latent; "
                f"got {'neither' if ids is None else 'both'}"
            )
        return ids, embeds

    def _place_text(self: Any, given: dict[str, Any], cache: Any, length: int, device: torch.device) -> None:
        """Let learned positions start behind the slots, and refuse a text that is too long for them."""
        spec: LatentSpec = self.latent_spec
        if spec.max_positions is None:
            return
        past: Any = cache.get_seq_length() if cache is not None else 0
        positions = given.get("position_ids") if self.takes_position_ids else None
        padding = self._latent_padding if positions is None else None
        if not (isinstance(past, Tensor) and torch.compiler.is_compiling()):
            room = spec.max_positions - spec.first_position - (0 if padding is None else padding + 1)
            end = int(past) + length
            if end > room and positions is not None:  # padding takes no position
                end = int(positions.max()) + 1
            if end > room:
                behind = f" behind {spec.first_position} slot(s)" if spec.first_position else ""
                raise ValueError(
                    f"a text of {end} tokens is too long: the model has {spec.max_positions} positions, "
                    f"and {room} of them{behind} are left for text; shorten it"
                )
        if not spec.first_position and padding is None:
            return
        if padding is not None:  # RoBERTa counts real tokens from behind the padding's position
            ids = given.get("input_ids")
            real = torch.ones(1, length, dtype=torch.long, device=device) if ids is None else ids != padding
            positions = (real.cumsum(-1) + past) * real + padding
        elif positions is None:
            mask = given.get("attention_mask")
            if (
                self.config.model_type == "opt" and mask is not None and mask.ndim == 2
            ):  # it counts real tokens
                positions = (mask.long().cumsum(-1) * mask - 1).long()[:, -length:]
            else:
                positions = (torch.arange(length, device=device) + past)[None]
        given["position_ids"] = positions + spec.first_position

    def _add_to_embeddings(
        self: Any, given: dict[str, Any], ids: Tensor | None, embeds: Tensor | None, added: Tensor
    ) -> None:
        """Replace the ids by embeddings with the latent's part in them."""
        prefix = self._latent_prefix
        if embeds is None:
            embeds = (self.get_decoder() if prefix else self).get_input_embeddings()(ids)
        given[f"{prefix}input_ids"] = None
        given[f"{prefix}inputs_embeds"] = embeds + added[:, None].to(device=embeds.device, dtype=embeds.dtype)

    def _check_route(self: Any) -> None:
        """See that attention still runs through us, whoever changed the config in the meantime."""
        module = self
        for part in self.latent_spec.sites[0].name.split("."):  # for every token: get_submodule takes longer
            module = getattr(module, part)
        if not module.config._attn_implementation.startswith(PREFIX):
            route(site_configs(self))

    def _check_checkpointing(self: Any) -> None:
        """Refuse reentrant gradient checkpointing, which drops the gradient of the latent without a word."""
        if not self.training or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return
        for module in self.modules():
            if getattr(module, "gradient_checkpointing", False):
                function = getattr(module, "_gradient_checkpointing_func", None)
                if getattr(function, "keywords", {}).get("use_reentrant") is not False:
                    raise ValueError(
                        "reentrant gradient checkpointing loses the gradient of the latent; "
                        'enable it with gradient_checkpointing_kwargs={"use_reentrant": False}'
                    )
                return

    def generate(
        self: Any,
        inputs: Tensor | None = None,
        *args: Any,
        latent: Tensor | None = None,
        null_latent: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate text from latents, with any decoding that the model has.

        Args:
            inputs: prompts as in the model's own generate; without any, texts start from the BOS token.
            *args: as in the model's own generate.
            latent: (B, latent_size) or another shape that the forward takes; one row serves all prompts.
            null_latent: what ``guidance_scale`` guides away from; zeros by default.
            **kwargs: as in the model's own generate. ``guidance_scale`` compares with the null latent.

        Returns:
            What the model's own generate returns.

        Raises:
            ValueError: a latent that does not fit, no BOS token to start from, or guidance that cannot work.
        """
        self._refuse_lookalikes(kwargs)
        if latent is None:
            if null_latent is not None:
                raise ValueError("null_latent needs a latent to guide towards; pass latent= as well")
            return super().generate(inputs, *args, **kwargs)  # type: ignore[misc]
        check_latent(latent, self.latent_spec)
        draft = kwargs.get("assistant_model")
        if isinstance(draft, LatentModel):
            other: LatentSpec = draft.latent_spec  # type: ignore[attr-defined]
            if other.latent_size != self.latent_spec.latent_size:
                raise ValueError(
                    f"the assistant_model was injected with latent_size={other.latent_size} and this model "
                    f"with latent_size={self.latent_spec.latent_size}; inject both with the same, or give a "
                    "draft without a latent"
                )
        kwargs |= dict(zip(list(inspect.signature(super().generate).parameters)[1:], args, strict=False))  # type: ignore[misc]
        prompt = inputs
        for name in ("input_ids", "inputs_embeds"):
            prompt = kwargs.get(name) if prompt is None else prompt
        if prompt is None and kwargs.get("encoder_outputs") is not None:
            prompt = kwargs["encoder_outputs"][0]
        if prompt is None:
            inputs = prompt = self._begin(latent, kwargs)
            kwargs.setdefault("attention_mask", torch.ones_like(prompt))
        if latent.shape[0] == 1:
            latent = latent.expand(prompt.shape[0], *latent.shape[1:])
        if latent.shape[0] != prompt.shape[0]:
            raise ValueError(
                f"latent has {latent.shape[0]} rows and there are {prompt.shape[0]} prompt(s); "
                "give one latent per prompt, or one for all"
            )
        latent = latent.to(prompt.device)
        scale = self._generation_option("guidance_scale", kwargs)
        if scale is not None and scale != 1:
            null = torch.zeros_like(latent[:1]) if null_latent is None else null_latent.to(prompt.device)
            guidance = self._guidance(null, scale, prompt, kwargs)
            kwargs["guidance_scale"] = 1.0  # so that the model's own kind of guidance stays out of it
            kwargs["logits_processor"] = _prepended(guidance, kwargs.get("logits_processor"))
        elif null_latent is not None:
            raise ValueError(
                "null_latent has no effect without guidance_scale; pass guidance_scale= other than 1"
            )
        return super().generate(inputs, latent=latent, **kwargs)  # type: ignore[misc]

    def init_continuous_batching(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Begin continuous batching as transformers does; its pages have no room for memory.

        Raises:
            ValueError: a latent was given.
        """
        _refuse_in_batches(kwargs)
        unroute(site_configs(self))  # until a call with a latent, which sees to its route
        self._latent_pages = True
        try:
            return super().init_continuous_batching(*args, **kwargs)  # type: ignore[misc]
        finally:
            del self._latent_pages

    def generate_batch(self: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Generate by continuous batching as transformers does, without a latent.

        Raises:
            ValueError: a latent was given.
        """
        _refuse_in_batches(kwargs)
        return super().generate_batch(inputs, *args, **kwargs)  # type: ignore[misc]

    def _generation_option(self: Any, name: str, kwargs: dict[str, Any]) -> Any:
        """What an option of generate is: its keyword, or that of the given config, or of the model's."""
        if name in kwargs:
            return kwargs[name]
        value = getattr(kwargs.get("generation_config"), name, None)
        return getattr(self.generation_config, name, None) if value is None else value

    def _begin(self: Any, latent: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """A BOS token for each latent."""
        bos = self._generation_option("bos_token_id", kwargs)
        bos = getattr(self.config, "bos_token_id", None) if bos is None else bos
        if bos is None:
            raise ValueError(
                f"{type(self).__name__} has no BOS token to start from: give input_ids, "
                "or set model.generation_config.bos_token_id"
            )
        return torch.full((latent.shape[0], 1), bos, dtype=torch.long, device=self.device)

    def _guidance(
        self: Any, null: Tensor, scale: float, prompt: Tensor, kwargs: dict[str, Any]
    ) -> LatentGuidance:
        """The processor that guides, if it can."""
        check_latent(null, self.latent_spec)
        if null.shape[0] not in (1, prompt.shape[0]):
            raise ValueError(
                f"null_latent has {null.shape[0]} rows; give 1 or one per prompt ({prompt.shape[0]})"
            )
        option = functools.partial(self._generation_option, kwargs=kwargs)
        if self.config.is_encoder_decoder or prompt.is_floating_point():
            raise ValueError(
                "guidance_scale with a latent works on decoder-only models and prompts of token ids"
            )
        drafts = ("prompt_lookup_num_tokens", "assistant_early_exit", "assistant_model")
        if any(option(name) is not None for name in drafts):
            raise ValueError(
                "guidance_scale with a latent does not work with prompt lookup or an assistant model"
            )
        beams = option("num_beams") or 1
        return LatentGuidance(self, null, scale, kwargs.get("attention_mask"), use_cache=beams == 1)

    def _get_candidate_generator(
        self: Any, *args: Any, model_kwargs: dict[str, Any], assistant_model: Any = None, **kwargs: Any
    ) -> Any:
        """Keep the latent from an assistant that takes none: it only drafts, and the draft is checked."""
        if assistant_model is not None and not isinstance(assistant_model, LatentModel):
            model_kwargs = {name: value for name, value in model_kwargs.items() if name != "latent"}
        return super()._get_candidate_generator(  # type: ignore[misc]
            *args, model_kwargs=model_kwargs, assistant_model=assistant_model, **kwargs
        )

    @property
    def cache_name(self) -> str:
        """What the forward of the model calls the cache of its text."""
        return cache_name(self._latent_names)  # type: ignore[attr-defined]

    @property
    def takes_position_ids(self) -> bool:
        """Whether the forward of the model has a parameter position_ids."""
        return "position_ids" in self._latent_names  # type: ignore[attr-defined]

    def set_attn_implementation(self: Any, attn_implementation: Any, *args: Any, **kwargs: Any) -> None:
        """Set the attention implementation as transformers does, and keep the memory in front of it.

        Raises:
            ValueError: an implementation without room for memory; nothing is changed then.
        """
        if self._latent_pages:
            super().set_attn_implementation(attn_implementation, *args, **kwargs)  # type: ignore[misc]
            return
        if isinstance(attn_implementation, str) and attn_implementation.removeprefix(PREFIX) in ROUTED:
            attn_implementation = attn_implementation.removeprefix(PREFIX)
        elif isinstance(attn_implementation, str) and self.latent_spec.has_memory:
            raise no_room(attn_implementation)
        configs = site_configs(self)
        before = [config._attn_implementation for config in configs]
        unroute(configs)
        try:
            super().set_attn_implementation(attn_implementation, *args, **kwargs)  # type: ignore[misc]
            route(configs)
        except Exception:
            for config, name in zip(configs, before, strict=True):
                config._attn_implementation_internal = name
            raise

    def save_pretrained(self: Any, save_directory: str | Path, *args: Any, **kwargs: Any) -> Any:
        """Save as transformers does, whose checks of a config know its own attention implementations only.

        Raises:
            ValueError: with an adapter of PEFT, the adapter alone is saved, and it leaves the latent out.
        """
        adapted = getattr(self, "_hf_peft_config_loaded", False)
        child = getattr(self, CHILD)
        kept = getattr(child, "modules_to_save", ())
        if adapted and any(name not in kept for name in self.active_adapters()):
            raise ValueError(
                "transformers saves the adapter of this model alone, and the latent's projections are not in "
                f'it; add it with LoraConfig(..., modules_to_save=["{CHILD}"]), after the injected model was '
                "saved"
            )
        if kwargs.get("state_dict") is not None and not adapted:  # gathered from shards, by accelerate
            kwargs["state_dict"] = {**kwargs["state_dict"], f"{CHILD}.{MARK}": torch.zeros(0)}
        configs = site_configs(self)
        before = [config._attn_implementation for config in configs]
        unroute(configs)
        try:
            with marked(child, marks=not adapted):
                return super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        finally:
            for config, name in zip(configs, before, strict=True):
                config._attn_implementation_internal = name

    def latent_status(self: Any) -> str:
        """One line: mode, latent size, slots, layers, trainable parameters of the injection, their share."""
        spec: LatentSpec = self.latent_spec
        parameters = {id(p): p.numel() for p in self.parameters()}
        own = {id(p): p.numel() for p in getattr(self, CHILD).parameters() if p.requires_grad}
        trained, total = sum(own.values()), sum(parameters.values())
        parts = [f"mode={spec.mode}", f"latent_size={spec.latent_size}"]
        if spec.has_memory:
            parts += [f"slots={spec.slots}", f"layers={len(spec.layers)}/{spec.num_layers}"]
        parts.append(f"trainable={trained:,} of {total:,} parameters ({100 * trained / total:.2f} %)")
        return "latent: " + ", ".join(parts)

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        """Pickle by the class of the model, as the subclass exists in this process only."""
        return _rebuild, (self._latent_base,), self.__getstate__()


def _rebuild(base: type) -> Any:
    """An empty injected model, for pickle to fill."""
    from fq_toolkit.layers.latent.injection import injected_class

    kind = injected_class(base)
    return kind.__new__(kind)


def site_configs(model: Any) -> list[Any]:
    """The distinct configs of the attention modules that read memory."""
    return distinct(model.get_submodule(site.name).config for site in model.latent_spec.sites)


def distinct(items: Iterator[Any]) -> list[Any]:
    """The objects, each once."""
    return list({id(item): item for item in items}.values())


def route(configs: list[Any]) -> None:
    """Send the attention of models with these configs through `latent_attention`.

    Raises:
        ValueError: an implementation that has no room for memory; no config is changed then.
    """
    for config in configs:
        name = config._attn_implementation or "eager"
        if name.removeprefix(PREFIX) not in ROUTED:
            raise no_room(name)
    for config in configs:
        name = config._attn_implementation or "eager"
        config._attn_implementation_internal = PREFIX + name.removeprefix(PREFIX)


def no_room(name: str) -> ValueError:
    """The error for an attention implementation that memory cannot be put in front of."""
    return ValueError(
        f"attention implementation {name!r} has no room for memory slots; use one of {', '.join(ROUTED)}: "
        'model.set_attn_implementation("sdpa")'
    )


def unroute(configs: list[Any]) -> None:
    """Undo `route`."""
    for config in configs:
        name = config._attn_implementation
        if name is not None:
            config._attn_implementation_internal = name.removeprefix(PREFIX)


def _refuse_in_batches(given: dict[str, Any]) -> None:
    """Refuse a latent for continuous batching, which would not hear of it."""
    named = [name for name in ("latent", "null_latent") if given.get(name) is not None]
    if named:
        raise ValueError(
            f"continuous batching (generate_batch) takes no {named[0]}: its pages hold text of all requests; "
            "use model.generate(input_ids, latent=...), with one latent per prompt"
        )


def _prepended(guidance: LatentGuidance, others: Any) -> Any:
    """The processors of the caller's, behind the guidance."""
    if others is None:
        return [guidance]
    return type(others)([guidance, *others])


def _keep_by_number(given: dict[str, Any], cache: Any) -> dict[str, Any]:
    """The keywords with ``logits_to_keep`` as the tokens' numbers, for which no model drops queries.

    Queries that are dropped without a mask lose their place in a causal attention. Gemma 4 knows it of the
    exact name "sdpa" only.
    """
    keep = given.get("logits_to_keep")
    if isinstance(keep, int) and (keep > 1 or (keep and getattr(cache, "is_compileable", False))):
        text = given.get("input_ids")
        text = given["inputs_embeds"] if text is None else text
        given["logits_to_keep"] = torch.arange(text.shape[1] - keep, text.shape[1], device=text.device)
    return given


def _compiled_without() -> bool:
    """Say it when a training step is compiled; what is compiled cannot."""
    logger.warning(
        "a training step of an injected model is compiled without a latent, whose projections learn nothing "
        'there; pass latent=, and see that the collator keeps a column "latent"'
    )
    return True


# What torch.compiler.assume_constant_result does; that imports the compiler, and Triton, with this module.
_compiled_without._dynamo_marked_constant = True  # type: ignore[attr-defined]


class _Touch(torch.autograd.Function):
    """The identity, with a zero gradient for parameters that took no part."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return (grads[0], *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors))


def _keep_in_graph(model: nn.Module, outputs: Any) -> Any:
    """Between ranks, give the injection a zero gradient from a step without a latent.

    DistributedDataParallel waits for a gradient of every parameter.
    """
    if not (model.training and torch.is_grad_enabled() and torch.distributed.is_available()):
        return outputs
    if torch.compiler.is_compiling() or not torch.distributed.is_initialized():
        return outputs
    parameters = [p for p in getattr(model, CHILD).parameters() if p.requires_grad]
    if not parameters:
        return outputs
    if isinstance(outputs, dict):
        for name in ("loss", "logits"):
            value = outputs.get(name)
            if isinstance(value, Tensor) and value.requires_grad:
                outputs[name] = _Touch.apply(value, *parameters)
        return outputs
    return tuple(
        _Touch.apply(value, *parameters) if isinstance(value, Tensor) and value.requires_grad else value
        for value in outputs
    )


def module_names(model: nn.Module) -> dict[nn.Module, str]:
    """The name of each module."""
    return {module: name for name, module in model.named_modules()}
