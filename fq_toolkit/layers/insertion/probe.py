"""One forward of a network that notes what each of its modules returns, and leaves everything as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fq_toolkit.layers.insertion.features import features_in, tensors_in
from fq_toolkit.layers.insertion.provenance import Place, Provenance, place_of

#: Modules that say where their channels are, also where the operations inside them do not.
_CHANNELS_FIRST = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d),
    *(nn.InstanceNorm3d, nn.GroupNorm, nn.PixelShuffle, nn.PixelUnshuffle),
)
_CHANNELS_LAST = (nn.Linear, nn.Embedding, nn.RNNBase, nn.MultiheadAttention, nn.TransformerEncoderLayer)


class Probed(NamedTuple):
    """What a module returned in the probe.

    Attributes:
        shape: of its features, None if it returned none.
        device: theirs.
        dtype: theirs.
        in_tuple: whether they came in a container.
        calls: how often the module ran.
        axis: the channel axis, None if nothing tells.
        is_output: whether they are the network's own output, up to operations without weights.
    """

    shape: tuple[int, ...] | None
    device: torch.device | None
    dtype: torch.dtype | None
    in_tuple: bool
    calls: int
    axis: int | None = None
    is_output: bool = False


def arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and the keyword arguments of a forward."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
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


def probe(model: nn.Module, modules: Mapping[str, nn.Module], example_inputs: Any) -> dict[str, Probed]:
    """Run the model once and note what its modules return, by name, in order of completion.

    Args:
        model: the network.
        modules: its modules by name, those with several names under each.
        example_inputs: what the forward is given.
    """
    seen: dict[str, Probed] = {}
    places: dict[str, Place] = {}
    provenance = Provenance()
    names: dict[nn.Module, str] = {}
    for name, module in modules.items():
        names.setdefault(module, name)

    def note(module: nn.Module, args: Any, output: Any) -> None:
        features, name = features_in(output), names[module]
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
        seen[name] = Probed(shape, device, dtype, not isinstance(output, Tensor), calls + 1, axis)

    hooks = [module.register_forward_hook(note) for module in names]
    args, kwargs = arguments(example_inputs)
    try:
        with untouched(model), provenance:
            result = model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    ends = frozenset[Place]().union(*(provenance.made_from(x) for x in tensors_in(result)))
    for name, place in places.items():
        seen[name] = seen[name]._replace(is_output=place in ends)
    for name, module in modules.items():  # a module under two names ran under both
        if names[module] in seen:
            seen.setdefault(name, seen[names[module]])
    return seen


def _axis_by_kind(module: nn.Module, ndim: int) -> int | None:
    """Return the channel axis that a kind of module is known for, None for others."""
    if isinstance(module, _CHANNELS_FIRST):
        return 1
    over_last = isinstance(module, nn.LayerNorm | nn.RMSNorm) and len(module.normalized_shape) == 1
    return ndim - 1 if over_last or isinstance(module, _CHANNELS_LAST) else None
