"""`LatentModel`: what an injected model does besides what its own class does.

`LatentModel._run_forward` puts a call together, top to bottom: text, latent, positions, embeddings, memory.
What each step does stands in a file of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fq_toolkit.layers.latent.attention.attend import Memory
from fq_toolkit.layers.latent.attention.route import (
    KEYWORD,
    PREFIX,
    ROUTED,
    no_room,
    restore,
    route,
    site_configs,
    unroute,
)
from fq_toolkit.layers.latent.cache import cache_name, projected_before, remember, take_cache
from fq_toolkit.layers.latent.generation import prepare_generation, refuse_in_batches
from fq_toolkit.layers.latent.missing_latents import (
    keep_in_graph,
    note_training,
    refuse_lookalikes,
    refuse_reentrant_checkpointing,
)
from fq_toolkit.layers.latent.placement import (
    add_to_embeddings,
    find_text,
    keep_by_number,
    place_text,
    projection_dtype,
    refuse_media,
)
from fq_toolkit.layers.latent.private import has_adapter, implementation
from fq_toolkit.layers.latent.projector import CHILD, MARK, Projected, check_latent, marked
from fq_toolkit.layers.latent.replaced_forward import checked, is_replaced, set_forward
from fq_toolkit.layers.latent.spec import LatentSpec


class LatentModel:
    """Mixed in front of a transformers model's class by `inject_latent`.

    The subclass that mixes it in sets ``_latent_base``, the class of the model, ``_latent_names``, the
    parameters of its forward, and ``_latent_prefix``, how those of them begin that are the decoder's.
    """

    #: The learned position of padding, in models that have one and count texts from behind it.
    _latent_padding: int | None = None
    #: Whether the model drops queries of its last layers by itself, which works with sdpa's own name only
    #: (Gemma 4).
    _latent_slices: bool = False
    #: Whether continuous batching is choosing its attention implementation, which needs no room for memory.
    _latent_pages: bool = False
    #: The forward that ours goes around, if one was assigned to the model before the injection.
    _latent_inner: Callable[..., Any] | None = None
    #: The token of a call that waits to hear that our forward ran.
    _latent_waiting: list[None] | None = None
    #: Training forwards without a latent so far; None once one has come, or the warning was given.
    _latent_steps: int | None = 0

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the model, and fail if a latent is given and another forward than ours ran."""
        run = super().__call__  # type: ignore[misc]
        return checked(self, run, *args, **kwargs) if is_replaced(self) else run(*args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a forward that is assigned is watched for whether it leads to ours."""
        if name == "forward":
            set_forward(self, value, super().__setattr__)  # type: ignore[arg-type]
        else:
            super().__setattr__(name, value)

    def _run_forward(
        self: Any,
        plain: Callable[..., Any],
        args: tuple[Any, ...],
        latent: Tensor | None,
        kwargs: dict[str, Any],
    ) -> Any:
        """Run the model's own forward, with the latent in it if there is one.

        Args:
            plain: the forward of the model's class, or what was assigned before the injection.
            args: of the call, without the model.
            latent: of the call.
            kwargs: of the call, without the latent.

        Returns:
            What ``plain`` returns.
        """
        if self._latent_waiting is not None:
            self._latent_waiting = None  # tells the call that its latent arrived
        refuse_lookalikes(self, kwargs)
        note_training(self, latent)

        # By name, as each argument may come by position. Without a latent these are only looked at, and the
        # model gets the call as it came.
        arguments = dict(zip(self._latent_names, args, strict=False)) | kwargs
        if latent is not None:
            check_latent(latent, self.latent_spec)
        cache = take_cache(arguments, self.cache_name)
        if self._latent_slices:
            args, kwargs = (), keep_by_number(arguments, cache)
        # Also without a latent: a text that was begun with one must not go on without.
        cached = projected_before(cache, latent)
        if latent is None:
            return keep_in_graph(self, plain(*args, **kwargs))

        # 1. The text, of which only the shape and the device are needed until embeddings are made of it.
        spec: LatentSpec = self.latent_spec
        if spec.has_embedding:
            refuse_media(self, arguments)
        ids, embeds = find_text(self, arguments)
        text: Any = ids if embeds is None else embeds
        batch, length = text.shape[:2]
        if latent.shape[0] not in (1, batch):
            raise ValueError(
                f"latent has {latent.shape[0]} row(s) and the text {batch}; "
                "give one latent per text, or one for all"
            )
        # 2. The latent, projected once per text. What the cache kept was made without a graph, so that it
        #    is of no use where gradients, or the random numbers of dropout, are wanted.
        in_graph = torch.is_grad_enabled() or self.training
        projected = self._project(latent) if cached is None or in_graph else cached
        # 3. Positions, before the ids may be gone: padding is found by its id.
        place_text(self, arguments, cache, length, text.device)
        # 4. Embeddings in place of ids, with the latent's part in them.
        if projected.embedding is not None:
            add_to_embeddings(self, arguments, ids, embeds, projected.embedding)
        # 5. Memory, which goes to the attention of each layer as a keyword. Masks and cache are not
        #    touched: they hold text only, and attention adds the columns of the slots itself.
        if projected.memory is not None:
            self._check_route()
            refuse_reentrant_checkpointing(self)
            arguments[KEYWORD] = Memory(projected.memory)
        outputs = plain(**arguments)
        if projected is not cached:
            remember(outputs, cache, latent, None if in_graph else projected)
        return outputs

    def _project(self: Any, latent: Tensor) -> Projected:
        """Project a latent, where and in which precision the projections compute."""
        projector = getattr(self, CHILD)
        like = next(projector.parameters(), latent)  # a projector of the caller's may have none
        device = latent.device if like.is_meta else like.device  # accelerate fetches offloaded weights
        return projector(latent.to(device=device, dtype=projection_dtype(self, like, latent)))

    def _check_route(self: Any) -> None:
        """Send attention through ours again if somebody has changed the config in the meantime."""
        module = self
        # By hand, as every token comes here and get_submodule is slower. The first site stands for all, whose
        # configs transformers sets together.
        for part in self.latent_spec.sites[0].name.split("."):
            module = getattr(module, part)
        if not (implementation(module.config) or "").startswith(PREFIX):
            route(site_configs(self))

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
        refuse_lookalikes(self, kwargs)
        if latent is None:
            if null_latent is not None:
                raise ValueError("null_latent needs a latent to guide towards; pass latent= as well")
            return super().generate(inputs, *args, **kwargs)  # type: ignore[misc]
        names = list(inspect.signature(super().generate).parameters)[1:]  # type: ignore[misc]
        options = kwargs | dict(zip(names, args, strict=False))
        inputs, options = prepare_generation(self, inputs, latent, null_latent, options)
        return super().generate(inputs, **options)  # type: ignore[misc]

    def _get_candidate_generator(
        self: Any, *args: Any, model_kwargs: dict[str, Any], assistant_model: Any = None, **kwargs: Any
    ) -> Any:
        """Keep the latent from an assistant that takes none: it only drafts, and the draft is checked.

        A private method of transformers' generation. Where it has another name this one is never called, and
        such an assistant refuses the keyword.
        """
        if assistant_model is not None and not isinstance(assistant_model, LatentModel):
            model_kwargs = {name: value for name, value in model_kwargs.items() if name != "latent"}
        return super()._get_candidate_generator(  # type: ignore[misc]
            *args, model_kwargs=model_kwargs, assistant_model=assistant_model, **kwargs
        )

    def init_continuous_batching(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Begin continuous batching as transformers does; its pages have no room for memory.

        Raises:
            ValueError: a latent was given.
        """
        refuse_in_batches(kwargs)
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
        refuse_in_batches(kwargs)
        return super().generate_batch(inputs, *args, **kwargs)  # type: ignore[misc]

    @property
    def cache_name(self) -> str:
        """The name that the forward of the model gives the cache of its text."""
        return cache_name(self._latent_names)  # type: ignore[attr-defined]

    @property
    def takes_position_ids(self) -> bool:
        """Whether the forward of the model has a parameter ``position_ids``."""
        return "position_ids" in self._latent_names  # type: ignore[attr-defined]

    def set_attn_implementation(self: Any, attn_implementation: Any, *args: Any, **kwargs: Any) -> None:
        """Set the attention implementation as transformers does, and keep the memory in front of it.

        Raises:
            ValueError: an implementation without room for memory; nothing is changed then.
        """
        if self._latent_pages:
            super().set_attn_implementation(attn_implementation, *args, **kwargs)  # type: ignore[misc]
            return
        # A caller that read the name from the config has it with our prefix.
        if isinstance(attn_implementation, str) and attn_implementation.removeprefix(PREFIX) in ROUTED:
            attn_implementation = attn_implementation.removeprefix(PREFIX)
        elif isinstance(attn_implementation, str) and self.latent_spec.has_memory:
            raise no_room(attn_implementation)
        configs = site_configs(self)
        names = unroute(configs)
        try:
            super().set_attn_implementation(attn_implementation, *args, **kwargs)  # type: ignore[misc]
            route(configs)
        except Exception:
            restore(configs, names)
            raise

    def save_pretrained(self: Any, save_directory: str | Path, *args: Any, **kwargs: Any) -> Any:
        """Save as transformers does, whose checks of a config know only its own attention implementations.

        The class in the config is that of the model, which loads the folder without the latent. A mark
        among the weights then tells that they were left behind.

        Raises:
            ValueError: with an adapter of PEFT only the adapter is saved, and it leaves the latent out.
        """
        adapted = has_adapter(self)
        child = getattr(self, CHILD)
        kept = getattr(child, "modules_to_save", ())
        if adapted and any(name not in kept for name in self.active_adapters()):
            raise ValueError(
                "transformers saves only the adapter of this model, and the latent's projections are not in "
                f'it; add it with LoraConfig(..., modules_to_save=["{CHILD}"]), after the injected model was '
                "saved"
            )
        if kwargs.get("state_dict") is not None and not adapted:  # gathered from shards, by accelerate
            kwargs["state_dict"] = {**kwargs["state_dict"], f"{CHILD}.{MARK}": torch.zeros(0)}
        configs = site_configs(self)
        names = unroute(configs)
        try:
            with marked(child, marks=not adapted):
                return super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        finally:
            restore(configs, names)

    def latent_status(self: Any) -> str:
        """Return a line with mode, latent size, slots, layers, and the share of trainable parameters."""
        spec: LatentSpec = self.latent_spec
        parameters = {id(p): p.numel() for p in self.parameters()}  # by id: tied weights count once
        own = {id(p): p.numel() for p in getattr(self, CHILD).parameters() if p.requires_grad}
        trained, total = sum(own.values()), sum(parameters.values())
        parts = [f"mode={spec.mode}", f"latent_size={spec.latent_size}"]
        if spec.has_memory:
            parts += [f"slots={spec.slots}", f"layers={len(spec.layers)}/{spec.num_layers}"]
        parts.append(f"trainable={trained:,} of {total:,} parameters ({100 * trained / total:.2f} %)")
        return "latent: " + ", ".join(parts)
