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
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fq_toolkit.layers.checks import one_of
from fq_toolkit.layers.latent.attention.attend import TAG
from fq_toolkit.layers.latent.attention.route import register_implementations, route, site_configs, unroute
from fq_toolkit.layers.latent.families import (
    check_model,
    count_layers,
    forward_parameters,
    learned_positions,
    position_table,
    text_embeddings,
    unsupported,
)
from fq_toolkit.layers.latent.missing_latents import warn_of_compiled_training
from fq_toolkit.layers.latent.model import LatentModel
from fq_toolkit.layers.latent.private import drops_queries, ignored_when_loading
from fq_toolkit.layers.latent.probing import Reading, check_call, check_embeddings, find_readers
from fq_toolkit.layers.latent.projector import CHILD, MARK, LatentProjector
from fq_toolkit.layers.latent.replaced_forward import INNER, WAITING, come_off, go_around, watched
from fq_toolkit.layers.latent.spec import CONFIG_KEY, LatentSpec, Site, check_settings, choose_layers

logger = logging.getLogger("fq_toolkit")


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
    and nothing else, visible to every token. Embedding: ``W_e z`` is added to each input embedding.

    Afterwards the forward and ``generate`` take ``latent=``; without it the model is what it was, bit for
    bit. Learned positions of a text start behind the slots if the forward takes ``position_ids``; else, and
    in rotary models, they start at 0.

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
        The same object. ``latent`` may be (B, nz), (1, nz), (B, slots, nz), (B, layers, nz) or
        (B, layers, slots, nz), the last three only with ``mode="memory"``.

    Raises:
        TypeError: not a model of transformers, or a setting of the wrong type.
        ValueError: a setting out of range, a model that is injected already, or an architecture in which
            memory cannot work; nothing is changed then.

    Source: arXiv 2004.04092, section 3.2.

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
    if isinstance(model, LatentModel):
        raise ValueError("a latent is injected into this model already; call remove_latent(model) first")
    check_model(model)
    check_settings(mode, latent_size, slots, init_std, latent_dropout, share_kv)
    custom = projector if isinstance(projector, nn.Module) else None
    kind = "custom" if isinstance(projector, nn.Module) else one_of("projector", projector, ("linear", "mlp"))
    has_memory = mode != "embedding"

    # Look, without changing anything: which attention can read memory, and whose forward runs.
    with watched(model) as has_run:
        if mode != "memory":
            check_embeddings(model)
        readings = find_readers(model) if has_memory else []
        leads_here = has_run()
    num_layers = len(readings) if has_memory else count_layers(model)
    chosen = choose_layers(layers, num_layers) if has_memory else ()
    if layers is not None and not has_memory:
        raise ValueError('layers chooses who reads memory, and mode="embedding" has none; leave it out')
    readers = [readings[layer] for layer in chosen]
    names = {module: name for name, module in model.named_modules()}
    if verify:
        _check_readers(model, readers, names)
    if share_kv and any(reader.key_dim != reader.value_dim for reader in readers):
        raise ValueError(
            f"keys have {readers[0].key_dim} channels per head and values {readers[0].value_dim}, "
            "so that one vector cannot be both; pass share_kv=False"
        )
    max_positions = learned_positions(model)
    # As in the released model, if the forward can be told its positions: BART's cannot.
    shifts = has_memory and max_positions is not None and "position_ids" in forward_parameters(type(model))
    spec = LatentSpec(
        mode=mode,
        latent_size=latent_size,
        slots=slots if has_memory else 1,
        share_kv=share_kv,
        projector=kind,
        layers=chosen,
        num_layers=num_layers,
        sites=tuple(Site(names[r.module], r.heads, r.key_dim, r.value_dim) for r in readers),
        hidden_size=text_embeddings(model).weight.shape[1],
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
    if custom is None:  # the caller's own keeps its precision
        child.to(dtype=model.dtype)

    # Change the model. From here on `remove_latent` knows how to undo it.
    kind_of_model: Any = type(model)
    model.__class__ = injected_class(kind_of_model)
    _own_configs(model)
    _attach(model, spec, child)
    model.config.latent_injection = spec.to_dict()
    go_around(model, leads_here)
    if verify and model.device.type != "meta":
        try:
            check_call(model)
        except Exception:
            remove_latent(model)
            raise
    logger.info("%s", model.latent_status())
    return model


def _check_readers(model: Any, readers: list[Reading], names: dict[nn.Module, str]) -> None:
    """Refuse a model with layers whose output does not depend on their slot."""
    blind = [names[reader.module] for reader in readers if not reader.reads]
    if blind:
        raise unsupported(model, f"these layers do not read their slot: {', '.join(blind)}")


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
    come_off(target)  # first, while the class still knows which forwards are ours
    unroute(site_configs(target))
    for site in target.latent_spec.sites:
        delattr(target.get_submodule(site.name), TAG)
    del target._modules[CHILD]  # not delattr, which a wrapper of PEFT may have made its own
    del target.latent_spec
    for name in ("_latent_padding", "_latent_slices", "_latent_steps"):
        vars(target).pop(name, None)
    delattr(target.config, CONFIG_KEY)
    target.__class__ = target._latent_base
    return target


@functools.cache
def injected_class(base: type) -> Any:
    """Return the subclass of a model's class that takes a latent.

    It has the name of the base, as configs record the name of a model's class and the base must load the
    folder. There is one for each base, so that models that were injected apart are of one class.
    """
    register_implementations()
    # Here and not where the function is defined: this loads torch's compiler, and Triton with it, which a
    # model of transformers has loaded already.
    torch.compiler.assume_constant_result(warn_of_compiled_training)
    plain: Any = base

    def forward(self: Any, *args: Any, latent: Tensor | None = None, **kwargs: Any) -> Any:
        inner = getattr(self, INNER, None)
        if inner is None:  # looked up at each call, so that an assignment to the base class counts
            inner = functools.partial(plain.forward, self)
        if not isinstance(self, LatentModel):  # removed, and called by what somebody has put around it
            if latent is not None:
                raise TypeError(f"the latent of this {base.__name__} was removed; call inject_latent again")
            if getattr(self, WAITING, None) is not None:
                setattr(self, WAITING, None)
            return inner(*args, **kwargs)
        return self._run_forward(inner, args, latent, kwargs)

    # transformers builds a model from its config when it loads one, and then fills in the saved weights.
    def init(
        self: Any, config: Any, *args: Any, latent_projector: nn.Module | None = None, **kwargs: Any
    ) -> None:
        plain.__init__(self, config, *args, **kwargs)
        spec = LatentSpec.from_dict(getattr(config, CONFIG_KEY))
        _attach(self, spec, LatentProjector(spec, latent_projector))

    def reduce(self: Any, _protocol: Any) -> Any:
        # By the class of the model, as the subclass exists in this process only.
        return _rebuild, (self._latent_base,), self.__getstate__()

    # Trainers choose the columns of a batch by the signature, so that it must name the latent.
    parameters = forward_parameters(base)
    rest = [parameters.pop(name) for name, p in list(parameters.items()) if p.kind is p.VAR_KEYWORD]
    own = inspect.Parameter("latent", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Tensor | None)
    forward.__signature__ = inspect.Signature([*parameters.values(), own, *rest])  # type: ignore[attr-defined]
    forward.__doc__ = plain.forward.__doc__
    members = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__init__": init,
        "__reduce_ex__": reduce,
        "forward": forward,
        "_latent_base": base,
        "_latent_forward": forward,
        "_keys_to_ignore_on_load_unexpected": [*ignored_when_loading(base), f"^{CHILD}\\.{MARK}$"],
        "_latent_names": tuple(parameters)[1:],
        "_latent_prefix": "decoder_" if "decoder_input_ids" in parameters else "",
    }
    return type(base.__name__, (LatentModel, base), members)


def _rebuild(base: type) -> Any:
    """Return an empty injected model, for pickle to fill."""
    kind = injected_class(base)
    return kind.__new__(kind)


def _attach(model: Any, spec: LatentSpec, child: LatentProjector) -> None:
    """Give a model of an injected class its settings, its projector, numbers of its readers and its route."""
    model.latent_spec = spec
    model.add_module(CHILD, child.train(model.training))
    table = position_table(model)
    if table is not None and table.padding_idx is not None and model.takes_position_ids:
        model._latent_padding = table.padding_idx
    if drops_queries(model):
        model._latent_slices = True
    for number, site in enumerate(spec.sites):
        setattr(model.get_submodule(site.name), TAG, number)
    route(site_configs(model))


def _own_configs(model: Any) -> None:
    """Give a model configs of its own: other models that were made of the same one keep it as it is."""
    copied: dict[int, Any] = {}  # deepcopy's memory: modules that shared a config share its copy
    for module in model.modules():
        if "config" in vars(module):
            module.config = copy.deepcopy(module.config, copied)
