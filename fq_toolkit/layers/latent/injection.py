"""Latents for decoders of transformers: as memory that every token attends to, in its embeddings, or both.

Source: "Optimus: Organizing Sentences via Pre-trained Modeling of a Latent Space", arXiv 2004.04092.
The memory is put in front of the keys and values inside attention, by a registered attention implementation,
so that the cache and the masks hold text only, and every kind of decoding works.
"""

from __future__ import annotations

import copy
import functools
import inspect
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fq_toolkit.layers.checks import one_of
from fq_toolkit.layers.latent.attention import (
    KEYWORD,
    PREFIX,
    ROUTED,
    TAG,
    Probe,
    Reading,
    eager_attention,
    routed,
)
from fq_toolkit.layers.latent.forward import INNER, WAITING, come_off, go_around, heard, suspicion
from fq_toolkit.layers.latent.model import (
    CHILD,
    LatentModel,
    distinct,
    module_names,
    route,
    site_configs,
    unroute,
)
from fq_toolkit.layers.latent.projector import MARK, LatentProjector
from fq_toolkit.layers.latent.spec import CONFIG_KEY, LatentSpec, Site, check_settings, choose_layers

logger = logging.getLogger("fq_toolkit")

# Tables of learned positions, by the names that models give them.
_POSITION_TABLES = ("wpe", "embed_positions", "position_embeddings")


def inject_latent(
    model: Any,
    mode: str = "memory",
    latent_size: int = 32,
    *,
    slots: int = 1,
    share_kv: bool = True,
    projector: str | nn.Module = "linear",
    layers: Iterable[int] | None = None,
    init_std: float = 0.02,
    latent_dropout: float = 0.0,
    check_finite: bool = False,
    verify: bool = True,
) -> Any:
    """Let a decoder of transformers depend on a latent vector, in place.

    Memory: ``h = W_m z``; each layer's part of h is key and value of a slot before the text, split into heads
    and nothing else, visible to every token.  Embedding: ``W_e z`` is added to each input embedding.
    Afterwards the forward and ``generate`` take ``latent=``; without it the model is what it was, bit for
    bit.  Learned positions of a text start behind the slots where the forward takes ``position_ids``; else,
    and in rotary models, they start at 0.

    Args:
        model: a decoder or encoder-decoder with a language-modelling head, such as ``GPT2LMHeadModel``.
        mode: "memory", "embedding" or "both".
        latent_size: nz, the length of a latent.
        slots: memory slots per layer.
        share_kv: one vector is key and value of a slot; else each has its own.
        projector: "linear" (no bias), "mlp" (tanh), or a module that maps (..., nz) to (..., width).
        layers: numbers of the layers that read memory; all by default.
        init_std: standard deviation of the projections at the start.
        latent_dropout: probability that training replaces a sample's latent by zeros, the null latent that
            ``generate(guidance_scale=...)`` guides away from.
        check_finite: refuse latents with a NaN or an infinity; costs a synchronisation per call.
        verify: prove by forwards of two tokens that each layer reads its slot, and that a call of the model
            with a latent gets there, whatever was assigned to the model's ``forward``.

    Returns:
        The same object.  ``latent`` may be (B, nz), (1, nz), (B, slots, nz), (B, layers, nz) or
        (B, layers, slots, nz), the last three for memory alone.

    Raises:
        TypeError: not a model of transformers, or a setting of the wrong type.
        ValueError: a setting out of range, a model that is injected already, or an architecture in which
            memory cannot work; nothing is changed then.

    Example:
        >>> import torch
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from fq_toolkit import inject_latent
        >>> config = GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=40, bos_token_id=1, eos_token_id=2)
        >>> model = inject_latent(GPT2LMHeadModel(config), latent_size=8)
        >>> model.latent_status()
        'latent: mode=memory, latent_size=8, slots=1, layers=2/2, trainable=256 of 23,872 parameters (1.07 %)'
        >>> z, ids = torch.randn(3, 8), torch.randint(3, 40, (3, 5))
        >>> model(ids, latent=z).logits.shape
        torch.Size([3, 5, 40])
    """
    _check_model(model)
    check_settings(mode, latent_size, slots, init_std, latent_dropout, share_kv)
    custom = projector if isinstance(projector, nn.Module) else None
    kind = "custom" if isinstance(projector, nn.Module) else one_of("projector", projector, ("linear", "mlp"))
    memory = mode != "embedding"
    with heard(model) as has_run:
        if mode != "memory":
            _check_embeddings(model)
        readings = _find_sites(model) if memory else []
        leads_here = has_run()
    num_layers = len(readings) if memory else _num_layers(model)
    chosen = choose_layers(layers, num_layers) if memory else ()
    if layers is not None and not memory:
        raise ValueError('layers chooses who reads memory, and mode="embedding" has none; leave it out')
    names = module_names(model)
    read = [readings[layer] for layer in chosen]
    if verify:
        blind = [names[reading.module] for reading in read if not reading.reads]
        if blind:
            raise _unsupported(model, f"these layers do not read their slot: {', '.join(blind)}")
    if share_kv and any(reading.key_dim != reading.value_dim for reading in read):
        raise ValueError(
            f"keys have {read[0].key_dim} channels per head and values {read[0].value_dim}, "
            "so that one vector cannot be both; pass share_kv=False"
        )
    max_positions = _learned_positions(model)
    shifts = memory and max_positions is not None and "position_ids" in _parameters(type(model))
    spec = LatentSpec(
        mode=mode,
        latent_size=latent_size,
        slots=slots if memory else 1,
        share_kv=share_kv,
        projector=kind,
        layers=chosen,
        num_layers=num_layers,
        sites=tuple(Site(names[r.module], r.heads, r.key_dim, r.value_dim) for r in read),
        hidden_size=_text_embeddings(model).weight.shape[1],
        max_positions=max_positions,
        first_position=slots if shifts else 0,
        init_std=float(init_std),
        latent_dropout=float(latent_dropout),
        check_finite=check_finite,
    )
    if getattr(model.config, CONFIG_KEY, None) is not None:
        logger.warning(
            "the config of this %s is that of a model with a latent, whose projections were not loaded; the "
            "new ones are random: load them by load_latent(folder)",
            type(model).__name__,
        )
    child = LatentProjector(spec, custom).to(device=model.device)
    if custom is None:
        child.to(dtype=model.dtype)
    kind_of_model: Any = type(model)
    model.__class__ = injected_class(kind_of_model)
    _own_configs(model)
    _attach(model, spec, child)
    model.config.latent_injection = spec.to_dict()
    go_around(model, leads_here)
    if verify and not model.device.type == "meta":
        try:
            _check_call(model)
        except Exception:
            remove_latent(model)
            raise
    logger.info("%s", model.latent_status())
    return model


def remove_latent(model: Any) -> Any:
    """Make an injected model what it was before, bit for bit.

    Args:
        model: what `inject_latent` or `load_latent` returned.

    Returns:
        The same object.

    Raises:
        ValueError: no latent was injected.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from fq_toolkit import inject_latent, remove_latent
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=40))
        >>> type(remove_latent(inject_latent(model))) is GPT2LMHeadModel
        True
    """
    if not isinstance(model, LatentModel):
        raise ValueError(
            f"no latent was injected into this {type(model).__name__}; there is nothing to remove"
        )
    target: Any = model
    come_off(target)
    unroute(site_configs(target))
    for site in target.latent_spec.sites:
        delattr(target.get_submodule(site.name), TAG)
    del target._modules[CHILD]
    del target.latent_spec
    for name in ("_latent_padding", "_latent_slices", "_latent_steps"):
        vars(target).pop(name, None)
    delattr(target.config, CONFIG_KEY)
    target.__class__ = target._latent_base
    return target


def load_latent(folder: str | Path, *, projector: nn.Module | None = None, **options: Any) -> Any:
    """Load a model that was saved with a latent in it.

    The folder is an ordinary one of transformers: the base model's class loads it too, without the latent.

    Args:
        folder: what ``model.save_pretrained`` wrote, or the name of a repository on the hub.
        projector: the module that was given to `inject_latent`, where one was.
        **options: as in the model's own ``from_pretrained``: dtype, device_map, revision ...

    Returns:
        The injected model, in eval mode.

    Raises:
        ValueError: nothing was injected into the saved model, its projector is missing, or weights are.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from fq_toolkit import inject_latent, load_latent
        >>> config = GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=40)
        >>> model = inject_latent(GPT2LMHeadModel(config)).eval()
        >>> ids, z = torch.randint(0, 40, (1, 4)), torch.randn(1, 32)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save_pretrained(folder)
        ...     same = load_latent(folder)
        >>> bool(torch.allclose(same(ids, latent=z).logits, model(ids, latent=z).logits))
        True
    """
    import transformers

    shared = ("revision", "token", "cache_dir", "local_files_only", "force_download", "proxies", "subfolder")
    config = options.pop("config", None)
    if (Path(folder) / "adapter_config.json").is_file() and not (Path(folder) / "config.json").is_file():
        raise ValueError(
            f"{str(folder)!r} holds an adapter alone; load the folder of the injected model that it was made "
            f"for, and then the adapter: load_latent(base).load_adapter({str(folder)!r})"
        )
    if config is None:
        hub = {key: options[key] for key in shared if key in options}
        config = transformers.AutoConfig.from_pretrained(folder, **hub)
    saved = getattr(config, CONFIG_KEY, None)
    if saved is None:
        raise ValueError(
            f"no latent was injected into the model in {str(folder)!r}: its config has no {CONFIG_KEY!r}; "
            "load it as usual and call inject_latent"
        )
    if (LatentSpec.from_dict(saved).projector == "custom") != (projector is not None):
        wanted = "the projector that was given to inject_latent" if projector is None else "no projector"
        raise ValueError(f"the model in {str(folder)!r} was saved with {wanted}; load it with the same")
    name = (config.architectures or [type(config).__name__])[0]
    base = getattr(transformers, name, None) or _own_class(name, type(config))
    if base is None:
        raise ValueError(
            f"transformers has no class {name!r}, which the model in {str(folder)!r} is of; if it is a class "
            "of your own, import it before loading"
        )
    if projector is not None:
        options["latent_projector"] = projector
    asked = options.pop("output_loading_info", False)
    model, info = injected_class(base).from_pretrained(
        folder, config=config, output_loading_info=True, **options
    )
    missing = sorted(key for key in info["missing_keys"] if key.startswith(CHILD + "."))
    if missing:
        raise ValueError(f"the weights in {str(folder)!r} lack {', '.join(missing)}, which would be random")
    return (model, info) if asked else model


def _own_class(name: str, config: type) -> Any:
    """A model class of the user's own, by its name and its config; None where none has been imported."""
    waiting: list[Any] = [_pretrained()]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.__name__ == name and kind.config_class is config and not issubclass(kind, LatentModel):
            return kind
    return None


@functools.cache
def injected_class(base: type) -> Any:
    """The subclass of a model's class that takes a latent, under the name of the base: configs record it."""
    _register()
    plain: Any = base

    def forward(self: Any, *args: Any, latent: Tensor | None = None, **kwargs: Any) -> Any:
        inner = getattr(self, INNER, None)
        if inner is None:
            inner = functools.partial(plain.forward, self)
        if not isinstance(self, LatentModel):  # removed, and called by what somebody has put around it
            if latent is not None:
                raise TypeError(f"the latent of this {base.__name__} was removed; call inject_latent again")
            if getattr(self, WAITING, None) is not None:
                setattr(self, WAITING, None)
            return inner(*args, **kwargs)
        return self._forward_with(inner, args, latent, kwargs)

    def init(
        self: Any, config: Any, *args: Any, latent_projector: nn.Module | None = None, **kwargs: Any
    ) -> None:
        plain.__init__(self, config, *args, **kwargs)
        spec = LatentSpec.from_dict(getattr(config, CONFIG_KEY))
        _attach(self, spec, LatentProjector(spec, latent_projector))

    parameters = dict(inspect.signature(plain.forward).parameters)
    rest = [parameters.pop(name) for name, p in list(parameters.items()) if p.kind is p.VAR_KEYWORD]
    own = inspect.Parameter("latent", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Tensor | None)
    forward.__signature__ = inspect.Signature([*parameters.values(), own, *rest])  # type: ignore[attr-defined]
    forward.__doc__ = plain.forward.__doc__
    members = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__init__": init,
        "forward": forward,
        "_latent_base": base,
        "_latent_forward": forward,
        "_keys_to_ignore_on_load_unexpected": [
            *(getattr(base, "_keys_to_ignore_on_load_unexpected", None) or ()),
            f"^{CHILD}\\.{MARK}$",
        ],
        "_latent_names": tuple(parameters)[1:],
        "_latent_prefix": "decoder_" if "decoder_input_ids" in parameters else "",
    }
    return type(base.__name__, (LatentModel, base), members)


@functools.cache
def _register() -> None:
    """Register the attention implementations, and with each the mask of the one it stands for."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    for name in ROUTED:
        base = eager_attention if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
        AttentionInterface.register(PREFIX + name, routed(base))
        AttentionMaskInterface.register(PREFIX + name, ALL_MASK_ATTENTION_FUNCTIONS[name])


def _attach(model: Any, spec: LatentSpec, child: LatentProjector) -> None:
    """Give a model of an injected class its trainable part, tags and route."""
    model.latent_spec = spec
    model.add_module(CHILD, child.train(model.training))
    table = _position_table(model)
    if table is not None and table.padding_idx is not None and model.takes_position_ids:
        model._latent_padding = table.padding_idx
    if any(hasattr(module, "_maybe_slice_kv_shared_inputs") for module in model.modules()):
        model._latent_slices = True
    for number, site in enumerate(spec.sites):
        setattr(model.get_submodule(site.name), TAG, number)
    route(site_configs(model))


def _own_configs(model: Any) -> None:
    """Give a model configs of its own: other models that were made of the same one keep it as it is."""
    copied: dict[int, Any] = {}
    for module in model.modules():
        if "config" in vars(module):
            module.config = copy.deepcopy(module.config, copied)


def _check_model(model: Any) -> None:
    """Refuse what cannot be injected in any mode."""
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        inner = (
            ": inject into the base model first and wrap it afterwards"
            if isinstance(model, nn.Module)
            else ""
        )
        raise TypeError(f"model must be a model of transformers, got {type(model).__name__}{inner}")
    if isinstance(model, LatentModel):
        raise ValueError("a latent is injected into this model already; call remove_latent(model) first")
    if model.device.type == "meta" and hasattr(model, "_hf_hook"):
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
    if "inputs_embeds" not in _parameters(type(model)):
        raise _unsupported(model, "its forward takes no inputs_embeds", suggest=False)


def _parameters(kind: type) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(kind.forward).parameters)  # type: ignore[attr-defined]


def _unsupported(model: Any, reason: str, suggest: bool = True) -> ValueError:
    """The error for an architecture in which memory cannot work."""
    hint = '; use mode="embedding", which works there' if suggest else ""
    return ValueError(
        f"{'memory' if suggest else 'a latent'} cannot work in {type(model).__name__} "
        f"(model_type {model.config.model_type!r}): {reason}{suspicion(model)}{hint}"
    )


def _num_layers(model: Any) -> int:
    """Layers of the decoder, as the config counts them."""
    for name in ("decoder_layers", "num_decoder_layers") if model.config.is_encoder_decoder else ():
        if getattr(model.config, name, None) is not None:
            return getattr(model.config, name)
    return model.config.get_text_config(decoder=True).num_hidden_layers


def _text_embeddings(model: Any) -> Any:
    """The table of the decoder's input embeddings."""
    return (model.get_decoder() if model.config.is_encoder_decoder else model).get_input_embeddings()


def _position_table(model: Any) -> nn.Embedding | None:
    """The decoder's table of learned positions, None where they are rotary, relative or computed."""
    decoder = model.get_decoder() if model.config.is_encoder_decoder else model
    for name, module in decoder.named_modules():
        if name.rpartition(".")[2] in _POSITION_TABLES and isinstance(module, nn.Embedding):
            return module
    return None


def _learned_positions(model: Any) -> int | None:
    """How many positions the decoder has learned, None where it has no table of them."""
    if _position_table(model) is None:
        return None
    return getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)


def _check_embeddings(model: Any) -> None:
    """See by a forward of two tokens that a text may be given as embeddings, which are no token's.

    Raises:
        ValueError: the model needs the tokens.
    """
    tokens = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    try:
        with _evaluating(model), torch.no_grad():
            embeds = _text_embeddings(model)(tokens) + 1
            if model.config.is_encoder_decoder:
                inputs = {"input_ids": tokens, "decoder_inputs_embeds": embeds}
            else:
                inputs = {"inputs_embeds": embeds}
            if not tokens.is_meta:  # where not every model runs
                model(**inputs, use_cache=False)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"a latent cannot be added to the embeddings of {type(model).__name__} "
            f"(model_type {model.config.model_type!r}), which needs the tokens themselves: "
            f"{error}{suspicion(model)}; "
            'use mode="memory"'
        ) from error


def _find_sites(model: Any) -> list[Reading]:
    """See by a forward of two tokens which attention can read memory, in the order of the layers.

    Raises:
        ValueError: memory cannot work in this architecture, or not with its attention implementation.
    """
    if not type(model)._can_set_attn_implementation():
        raise _unsupported(model, "its attention does not go through the interface of transformers")
    _register()
    probe = Probe()
    pretrained: Any = _pretrained()
    configs = distinct(module.config for module in model.modules() if isinstance(module, pretrained))
    before = [config._attn_implementation for config in configs]
    tokens = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    inputs: dict[str, Any] = {"input_ids": tokens, "use_cache": tokens.is_meta}
    if not tokens.is_meta:  # with a mask or without a cache, transformers looks at the numbers in tensors
        inputs["attention_mask"] = torch.ones_like(tokens)
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens
    route(configs)
    try:
        with _evaluating(model), torch.no_grad():
            model(**inputs, **{KEYWORD: probe})
    except TypeError as error:
        raise _unsupported(model, f"its attention takes no memory ({error})") from error
    except RuntimeError as error:
        if not tokens.is_meta:
            raise
        raise ValueError(
            f"{type(model).__name__} does not run on the meta device, so that its layers cannot be tried "
            f"({error}); give it weights first, and inject then"
        ) from error
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation_internal = name
    if not probe.readings:  # hybrids keep memory in the attention that they have
        raise _unsupported(model, _why_no_sites(model))
    return probe.readings


def _why_no_sites(model: Any) -> str:
    """Why no attention of a model asked for memory."""
    kinds = {type(module).__name__ for module in model.modules() if "Attention" in type(module).__name__}
    if not kinds:
        return "it has no attention layers"
    return (
        f"its attention ({', '.join(sorted(kinds))}) computes by itself or without a causal mask, and not "
        "through the attention interface of transformers"
    )


def _pretrained() -> type:
    from transformers import PreTrainedModel

    return PreTrainedModel


def _check_call(model: Any) -> None:
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

    class Slots(list[Any]):
        """Note which layers take theirs."""

        def __getitem__(self, layer: Any) -> Any:
            read.add(layer)
            return super().__getitem__(layer)

    def note(_module: nn.Module, _inputs: Any, projected: Any) -> Any:
        return projected if projected.memory is None else projected._replace(memory=Slots(projected.memory))

    handle = getattr(model, CHILD).register_forward_hook(note)
    latent = torch.zeros(1, spec.latent_size, device=model.device)
    try:
        with _evaluating(model), torch.no_grad():
            model(**inputs, latent=latent, use_cache=False)
    finally:
        handle.remove()
    deaf = [site.name for number, site in enumerate(spec.sites) if number not in read]
    if deaf:
        raise ValueError(
            f"a call of this {type(model).__name__} with a latent does not reach {', '.join(deaf)}: the "
            "forward that was assigned to it drops keywords that it does not know; take it back first"
        )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Run a block in eval mode, and put the modes of all modules back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
