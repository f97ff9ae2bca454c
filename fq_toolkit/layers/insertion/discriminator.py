"""Adding quantizers to somebody else's network, and taking them out again."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import difflib
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from fq_toolkit.layers.insertion.provenance import Place, Provenance, place_of
from fq_toolkit.layers.quantizer.feature_quantizer import FeatureQuantizer
from fq_toolkit.layers.quantizer.layout import resolve_channel_dim
from fq_toolkit.layers.quantizer.report import format_table
from fq_toolkit.layers.quantizer.updates import CoalescedUpdates, coalesce_updates, forget_coalescing

logger = logging.getLogger("fq_toolkit")

#: Name of the child module that is added to a quantized module.
CHILD = "feature_quantizer"


class QuantizedLayer(NamedTuple):
    """A module that got a quantizer.

    Attributes:
        name: its name in the model.
        shape: shape of its output in the probe.
        dim: channels.
        num_codes: K.
    """

    name: str
    shape: tuple[int, ...]
    dim: int
    num_codes: int


class QuantizationHandle:
    """What `quantize_discriminator` returns: the table of its layers, their parameters, and the way back.

    Attributes:
        layers: what was quantized.
    """

    def __init__(
        self, model: nn.Module, layers: list[QuantizedLayer], hooks: list[RemovableHandle | CoalescedUpdates]
    ) -> None:
        self.layers = tuple(layers)
        self._model: nn.Module | None = model
        self._hooks = hooks

    def __str__(self) -> str:
        rows = [
            (layer.name, " x ".join(map(str, layer.shape)), str(layer.dim), str(layer.num_codes))
            for layer in self.layers
        ]
        table = format_table(("layer", "shape", "dim", "K"), rows)
        if added := sum(parameter.numel() for parameter in self.parameters()):
            table += (
                f"\n{added} new parameters (projections to codebook_dim and back): an optimizer that was "
                "built before does not train them; give it handle.parameters()"
            )
        return table

    __repr__ = __str__

    def parameters(self) -> list[nn.Parameter]:
        """The parameters that came with the quantizers, for the optimizer: projections, if there are any."""
        if self._model is None:
            return []
        modules = dict(self._model.named_modules(remove_duplicate=False))
        found = (modules[layer.name]._modules.get(CHILD) for layer in self.layers if layer.name in modules)
        return [
            parameter for quantizer in found if quantizer is not None for parameter in quantizer.parameters()
        ]

    def remove(self, model: nn.Module | None = None) -> None:
        """Restore the original model, bit for bit. A second call does nothing.

        Args:
            model: a copy of the quantized model (by `copy.deepcopy` or pickle) to restore instead; the
                quantized model itself stays as it is.

        Raises:
            ValueError: ``model`` is no copy of the quantized model.
        """
        if model is not None and model is not self._model:
            self._remove_from_copy(model)
            return
        if self._model is None:
            return
        for hook in self._hooks:
            hook.remove()
        modules = dict(self._model.named_modules(remove_duplicate=False))
        for layer in self.layers:
            if layer.name in modules:  # and where it has been replaced, its quantizer went with it
                modules[layer.name]._modules.pop(CHILD, None)
        self._model = None

    def _remove_from_copy(self, model: nn.Module) -> None:
        modules = dict(model.named_modules(remove_duplicate=False))
        ours = [modules[layer.name] for layer in self.layers if layer.name in modules]
        ours = [module for module in ours if isinstance(module._modules.get(CHILD), FeatureQuantizer)]
        if not ours:
            raise ValueError(
                f"{type(model).__name__} has none of the quantizers of this handle "
                f"({', '.join(repr(layer.name) for layer in self.layers)}); give a copy of the quantized one"
            )
        for module in ours:
            del module._modules[CHILD]
            for key in [key for key, hook in module._forward_hooks.items() if hook is quantize_output]:
                del module._forward_hooks[key]
        forget_coalescing(model)


def quantize_output(module: nn.Module, args: Any, output: Any) -> Any:
    """Forward hook of a quantized module.

    It finds the quantizer through the module that runs, not through a closure, so a deep copy of the network
    quantizes with the copy's own dictionary.
    """
    return _replace_features(output, module._modules[CHILD])


def quantize_discriminator(
    model: nn.Module,
    *,
    layers: Iterable[str] | str,
    num_codes: int | Mapping[str, int],
    example_inputs: Any,
    **options: Any,
) -> QuantizationHandle:
    """Quantize the outputs of named modules of an existing network, in place.

    Each module gets a `FeatureQuantizer` as a child named ``feature_quantizer``, and a hook that sends the
    module's output through it.  (Not so an `nn.Sequential`, which runs its last child anyway.)  Between ranks
    all layers of the network are updated by one all_reduce at the end of its forward.

    Args:
        model: the network, a discriminator for example.
        layers: names as in ``model.named_modules()``, or "auto": the last block at each resolution of the
            feature maps that is smaller than the input, but for what becomes the network's own output.
        num_codes: K for all, or by name.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments for one probe
            forward. It runs in eval mode without grad and leaves buffers and random numbers as they were.
        **options: settings of every `FeatureQuantizer`.  ``channel_dim`` is one axis for all, or axes by
            name; by default the axis is that of the operation that made the features: 1 behind convolutions
            and their norms, the last behind linear layers and layer norms, followed through permutations and
            views.  With ``codebook_dim`` the quantizers bring projections, which an optimizer that was built
            before does not know: give it ``handle.parameters()``.

    Returns:
        A handle: ``print(handle)`` shows name, shape and K, ``handle.parameters()`` are new parameters, and
        ``handle.remove()`` restores the network.

    Raises:
        ValueError: an unknown name (near ones are listed), a module that is quantized already, that did not
            run in the probe, has no features as output or features whose channel axis nothing tells, or that
            runs its children in a way that a quantizer cannot join; nothing is changed then.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from fq_toolkit import quantize_discriminator
        >>> D = nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 1))
        >>> handle = quantize_discriminator(
        ...     D, layers=["1"], num_codes=16, example_inputs=torch.zeros(2, 3, 16, 16))
        >>> print(handle)
        layer          shape  dim   K
        -----  -------------  ---  --
        1      2 x 8 x 8 x 8    8  16
        >>> handle.remove()
    """
    modules = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
    probed = _probe(model, modules, example_inputs)
    if isinstance(layers, str):
        if layers != "auto":
            raise ValueError(f'layers must be a list of names or "auto", got {layers!r}')
        names = _choose(probed, modules, example_inputs)
    else:
        names = list(layers)
    _check_names(names, modules)
    planned, axes = [], {}
    given = options.pop("channel_dim", None)
    for name in given if isinstance(given, Mapping) else ():
        if name not in names:
            raise ValueError(
                f"channel_dim names {name!r}, which is not among the modules to quantize: "
                f"{', '.join(map(repr, names))}"
            )
    for name in names:
        shape = _output_shape(name, modules[name], probed)
        axes[name] = _channel_axis(name, probed[name], shape, given)
        planned.append(QuantizedLayer(name, shape, shape[axes[name]], _codes_of(name, num_codes)))
    if not planned:
        raise ValueError("layers is empty: name at least one module")
    quantizers = [
        FeatureQuantizer(
            layer.dim,
            layer.num_codes,
            device=probed[layer.name].device,
            channel_dim=axes[layer.name] if axes[layer.name] == 1 else axes[layer.name] - len(layer.shape),
            **options,
        )
        for layer in planned
    ]
    by_hook = _needs_hook(model, {name: modules[name] for name in names}, example_inputs)

    hooks: list[RemovableHandle | CoalescedUpdates] = []
    for layer, quantizer in zip(planned, quantizers, strict=True):
        module = modules[layer.name]
        found = probed[layer.name]
        if found.device is not None and not torch.is_autocast_enabled(found.device.type):
            quantizer.to(found.dtype)  # its projections; the dictionary stays float32
        quantizer.train(module.training)
        module.add_module(CHILD, quantizer)
        if by_hook[layer.name]:
            hooks.append(module.register_forward_hook(quantize_output))
    hooks.append(coalesce_updates(model))
    handle = QuantizationHandle(model, planned, hooks)
    logger.info("quantized %d layer(s):\n%s", len(planned), handle)
    return handle


class _Probed(NamedTuple):
    """What a module returned in the probe, in order of completion."""

    shape: tuple[int, ...] | None
    device: torch.device | None
    dtype: torch.dtype | None
    in_tuple: bool
    calls: int
    axis: int | None = None
    is_output: bool = False


def _features(output: Any) -> Tensor | None:
    """The features in a module's output: itself, or the first one in a container."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() and output.ndim >= 2 else None
    items: Iterable[Any] = ()
    if isinstance(output, Mapping):
        items = output.values()
    elif isinstance(output, tuple | list):
        items = output
    found = (_features(item) for item in items if isinstance(item, Tensor))
    return next((features for features in found if features is not None), None)


def _replace_features(output: Any, quantizer: Any) -> Any:
    """The same output with its features quantized."""
    features = _features(output)
    if features is None:
        return output
    if isinstance(output, Tensor):
        return quantizer(output)
    quantized = quantizer(features)
    if isinstance(output, Mapping):
        entries: Any = copy.copy(output) if isinstance(output, dict) else dict(output)
        for key in [key for key, value in output.items() if value is features]:
            entries[key] = quantized
        return entries
    items = [quantized if item is features else item for item in output]
    if hasattr(output, "_fields"):  # a named tuple
        return type(output)(*items)
    return type(output)(items)


def _runs_its_children(module: nn.Module) -> bool:
    """Whether a child appended to this module is run by the module itself."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


@contextlib.contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Run a block in eval mode without grad, and put modes, buffers and random numbers back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and not is_lazy(buffer)  # a lazy module finds its shapes in the probe
    ]
    devices = sorted({tensor.device.index for tensor in model.parameters() if tensor.device.type == "cuda"})
    model.eval()
    try:
        # A compiled model is run as it was written: the hooks of a probe came after its compilation.
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=devices),
            torch.compiler.set_stance("force_eager"),
        ):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for owner, name, buffer, before in buffers:
                owner._buffers[name] = buffer.copy_(before)  # a forward may have put another in its place


def _probe(model: nn.Module, modules: Mapping[str, nn.Module], example_inputs: Any) -> dict[str, _Probed]:
    """Shapes of all modules' outputs in one forward, by name, in order of completion."""
    seen: dict[str, _Probed] = {}
    places: dict[str, Place] = {}
    provenance = Provenance()
    names: dict[nn.Module, str] = {}
    for name, module in modules.items():
        names.setdefault(module, name)

    def note(module: nn.Module, args: Any, output: Any) -> None:
        features, name = _features(output), names[module]
        calls = seen.pop(name).calls if name in seen else 0
        shape = None if features is None else tuple(features.shape)
        device = None if features is None else features.device
        dtype = None if features is None else features.dtype
        axis = None
        if features is not None:
            told = _axis_by_kind(module, features.ndim)
            # The operations come first: a subclass may return another layout than its parent.
            if told is not None and provenance.axis(features) is None and not provenance.is_mixed(features):
                provenance.tell(features, told)
            known = provenance.axis(features)
            axis, places[name] = told if known is None else known, place_of(features)
        seen[name] = _Probed(shape, device, dtype, not isinstance(output, Tensor), calls + 1, axis)

    hooks = [module.register_forward_hook(note) for module in names]
    args, kwargs = _arguments(example_inputs)
    try:
        with _untouched(model), provenance:
            result = model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    ends = frozenset[Place]().union(*(provenance.made_from(x) for x in _tensors_in(result)))
    for name, place in places.items():
        seen[name] = seen[name]._replace(is_output=place in ends)
    for name, module in modules.items():  # a module under two names ran under both
        if names[module] in seen:
            seen.setdefault(name, seen[names[module]])
    return seen


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in what a model returned: containers, dataclasses and other objects that hold some."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        for leaf in tree_leaves(waiting.pop()):
            if isinstance(leaf, Tensor):
                yield leaf
            elif id(leaf) not in seen and not isinstance(leaf, nn.Module | type):
                seen.add(id(leaf))
                if dataclasses.is_dataclass(leaf):  # with or without slots
                    waiting.append([getattr(leaf, field.name, None) for field in dataclasses.fields(leaf)])
                else:
                    waiting.append(list(getattr(leaf, "__dict__", {}).values()))


#: Modules that say where their channels are, also where the operations inside them do not.
_CHANNELS_FIRST = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d),
    *(nn.InstanceNorm3d, nn.GroupNorm, nn.PixelShuffle, nn.PixelUnshuffle),
)
_CHANNELS_LAST = (nn.Linear, nn.Embedding, nn.RNNBase, nn.MultiheadAttention, nn.TransformerEncoderLayer)


def _axis_by_kind(module: nn.Module, ndim: int) -> int | None:
    """The channel axis that a kind of module is known for, where the operations inside it do not tell."""
    if isinstance(module, _CHANNELS_FIRST):
        return 1
    over_last = isinstance(module, nn.LayerNorm | nn.RMSNorm) and len(module.normalized_shape) == 1
    return ndim - 1 if over_last or isinstance(module, _CHANNELS_LAST) else None


def _channel_axis(
    name: str, found: _Probed, shape: tuple[int, ...], given: int | Mapping[str, int] | None
) -> int:
    """The channel axis of a module's features: as given, else of what made them; never by the shape alone."""
    if isinstance(given, Mapping):
        given = given.get(name)
    if given is not None or len(shape) == 2:
        return resolve_channel_dim(len(shape), given)
    if not found.axis:  # none, or the batch axis
        raise ValueError(
            f"nothing tells which axis of the output of {name!r}, shape {shape}, holds the channels; pass "
            f"channel_dim={{{name!r}: axis}}, 1 for (B, C, ...) and -1 for (B, ..., C)"
        )
    return found.axis


class _StandIn(nn.Module):
    """Stands where a quantizer would, and notes how it is run."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0
        self.last: Any = None
        self.got_more = False

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        self.runs += 1
        self.last = x
        self.got_more |= bool(args or kwargs)
        return x


class _Trial:
    """What chosen modules did in one forward.

    Attributes:
        returned: their features, call by call.
        stood_in: for each call whether the stand-in ran, once and on just what the module returned; None
            where it ran in another way.
        child_runs: how often each of their own children ran.
    """

    def __init__(self, model: nn.Module, chosen: Mapping[str, nn.Module], example_inputs: Any) -> None:
        self.returned: dict[str, list[Tensor | None]] = {name: [] for name in chosen}
        self.stood_in: dict[str, list[bool | None]] = {name: [] for name in chosen}
        children = {child for module in chosen.values() for child in module.children()}
        self._runs: dict[nn.Module, int] = {child: 0 for child in children if not isinstance(child, _StandIn)}
        hooks = [child.register_forward_hook(self._count) for child in self._runs]
        hooks += [module.register_forward_hook(self._note(name)) for name, module in chosen.items()]
        args, kwargs = _arguments(example_inputs)
        try:
            with _untouched(model):
                model(*args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        self.child_runs = {
            name: [self._runs[child] for child in module.children() if child in self._runs]
            for name, module in chosen.items()
        }

    def _count(self, module: nn.Module, args: Any, output: Any) -> None:
        self._runs[module] += 1

    def _note(self, name: str) -> Any:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            features = _features(output)
            # A copy, as an activation in place may follow.
            self.returned[name].append(None if features is None else features.clone())
            stand_in = module._modules.get(CHILD)
            if isinstance(stand_in, _StandIn):
                runs, stand_in.runs = stand_in.runs, 0
                proper = runs == 1 and features is stand_in.last and not stand_in.got_more
                self.stood_in[name].append(False if runs == 0 else True if proper else None)

        return note


def _needs_hook(model: nn.Module, chosen: Mapping[str, nn.Module], example_inputs: Any) -> dict[str, bool]:
    """Whether each module's quantizer must be run by a hook: not where the module runs all its children.

    Tried in two forwards, without and with a stand-in as the last child.

    Raises:
        ValueError: a module that a new child changes, or that runs it in another way than once on just what
            the module returns.
    """
    alone = _Trial(model, chosen, example_inputs)
    try:
        for module in chosen.values():
            module.add_module(CHILD, _StandIn())
        tried = _Trial(model, chosen, example_inputs)
    except Exception as error:
        suspects = [name for name, module in chosen.items() if not _runs_its_children(module)]
        raise ValueError(
            f"the model fails with a new child in {', '.join(map(repr, suspects or chosen))}: one of them "
            f"runs its children itself; name the module inside it whose output is meant ({error})"
        ) from error
    finally:
        for module in chosen.values():
            module._modules.pop(CHILD, None)
    for name, module in chosen.items():
        joined = tried.stood_in[name]
        before, after = alone.returned[name], tried.returned[name]
        if (
            None in joined
            or len(set(joined)) > 1
            or alone.child_runs[name] != tried.child_runs[name]
            or (any(joined) and not all(map(_alike, before, after)))
        ):
            raise ValueError(
                f"{name!r} ({type(module).__name__}) runs its children itself, and a quantizer among them "
                "would change what it does, run on something else than what it returns, or not once; name "
                "the module inside it whose output is meant"
            )
    return {name: not any(joined) for name, joined in tried.stood_in.items()}


def _alike(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two runs returned the same features, up to kernels that round differently from run to run."""
    if a is None or b is None or a.shape != b.shape:
        return a is b
    return torch.allclose(a.float(), b.float(), rtol=1e-2, atol=1e-3, equal_nan=True)


def _check_names(names: list[str], modules: Mapping[str, nn.Module]) -> None:
    seen: dict[nn.Module, str] = {}
    for name in names:
        if name not in modules:
            near = difflib.get_close_matches(name, modules, n=5, cutoff=0.4) or list(modules)[:8]
            raise ValueError(f"the model has no module {name!r}; near names are {', '.join(map(repr, near))}")
        module = modules[name]
        if CHILD in module._modules or isinstance(module, FeatureQuantizer):
            raise ValueError(f"{name!r} is quantized already; call remove() on its handle first")
        if module in seen:
            raise ValueError(
                f"{name!r} and {seen[module]!r} are the same module, which cannot be quantized twice"
            )
        seen[module] = name
        if isinstance(module, nn.ModuleList | nn.ModuleDict) or (
            isinstance(module, nn.Sequential) and not _runs_its_children(module)
        ):
            inside = [child for child in modules if child.startswith(name + ".")][:5]
            raise ValueError(
                f"{name!r} is a {type(module).__name__}, whose children the model runs itself; name one of "
                f"them, such as {', '.join(map(repr, inside))}"
            )


def _output_shape(name: str, module: nn.Module, probed: Mapping[str, _Probed]) -> tuple[int, ...]:
    if name not in probed:
        raise ValueError(f"{name!r} did not run in the probe forward, so its output cannot be quantized")
    found = probed[name]
    if found.shape is None:
        raise ValueError(f"the output of {name!r} holds no features: no floating tensor with a channel axis")
    if found.in_tuple and _runs_its_children(module):
        raise ValueError(f"{name!r} is a Sequential that returns several values; name its last child instead")
    return found.shape


def _codes_of(name: str, num_codes: int | Mapping[str, int]) -> int:
    if not isinstance(num_codes, Mapping):
        return num_codes
    if name not in num_codes:
        raise ValueError(f"num_codes has no entry for {name!r}; it has {', '.join(map(repr, num_codes))}")
    return num_codes[name]


def _choose(
    probed: Mapping[str, _Probed], modules: Mapping[str, nn.Module], example_inputs: Any
) -> list[str]:
    """The outermost module that finishes last at each resolution between the input's and 1 x 1."""
    args, kwargs = _arguments(example_inputs)
    maps = [x.shape[2:] for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.ndim >= 4]
    largest = max((max(shape) for shape in maps), default=0)
    # The last child of a Sequential finishes with the same features, so a Sequential itself is never chosen.
    producers = {
        name: found.shape
        for name, found in probed.items()
        if found.shape is not None and len(found.shape) >= 4 and found.calls == 1
        if not isinstance(modules[name], nn.Sequential | FeatureQuantizer)
        if not found.is_output
    }
    chosen: dict[tuple[int, ...], str] = {}
    for name, shape in producers.items():
        parts = name.split(".")
        if any(".".join(parts[:i]) in producers for i in range(1, len(parts))):
            continue  # a part of a block, not a block
        axis = probed[name].axis or 1
        resolution = tuple(size for i, size in enumerate(shape) if i not in (0, axis))
        if max(resolution) > 1 and (largest == 0 or max(resolution) < largest):
            chosen[resolution] = name
    if not chosen:
        some = ", ".join(f"{name!r} {found.shape}" for name, found in list(probed.items())[:8])
        raise ValueError(
            f'layers="auto" finds no feature maps smaller than the input that are not the network\'s own '
            f"output; name layers, for example {some}"
        )
    return list(chosen.values())
