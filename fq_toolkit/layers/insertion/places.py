"""Which modules of a network are quantized, with how many codes, and along which axis."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from fq_toolkit.layers.insertion.handle import CHILD, QuantizedLayer
from fq_toolkit.layers.insertion.probe import Probed, arguments
from fq_toolkit.layers.insertion.trial import runs_its_children
from fq_toolkit.layers.quantizer.feature_quantizer import FeatureQuantizer
from fq_toolkit.layers.quantizer.layout import resolve_channel_dim


def choose_names(
    layers: Iterable[str] | str,
    modules: Mapping[str, nn.Module],
    probed: Mapping[str, Probed],
    example_inputs: Any,
) -> list[str]:
    """Return the names of the modules to quantize.

    Args:
        layers: names, or "auto".
        modules: the modules of the network by name.
        probed: what they returned.
        example_inputs: what the network was given.

    Raises:
        ValueError: an unknown name, a module that cannot be quantized, or nothing to choose.
    """
    if isinstance(layers, str):
        if layers != "auto":
            raise ValueError(f'layers must be a list of names or "auto", got {layers!r}')
        names = _choose(probed, modules, example_inputs)
    else:
        names = list(layers)
    _check_names(names, modules)
    if not names:
        raise ValueError("layers is empty: name at least one module")
    return names


def plan(
    names: list[str],
    modules: Mapping[str, nn.Module],
    probed: Mapping[str, Probed],
    num_codes: int | Mapping[str, int],
    channel_dim: int | Mapping[str, int] | None,
) -> list[tuple[QuantizedLayer, int]]:
    """Return for each name what its quantizer will be, and the channel axis, counted from the front.

    Raises:
        ValueError: a module that did not run or returned no features, an entry that is missing or of no use,
            or a channel axis that nothing tells.
    """
    for name in channel_dim if isinstance(channel_dim, Mapping) else ():
        if name not in names:
            raise ValueError(
                f"channel_dim names {name!r}, which is not among the modules to quantize: "
                f"{', '.join(map(repr, names))}"
            )
    planned = []
    for name in names:
        shape = _output_shape(name, modules[name], probed)
        axis = _channel_axis(name, probed[name], shape, channel_dim)
        planned.append((QuantizedLayer(name, shape, shape[axis], _codes_of(name, num_codes)), axis))
    return planned


def _channel_axis(
    name: str, probed: Probed, shape: tuple[int, ...], given: int | Mapping[str, int] | None
) -> int:
    """Return the channel axis of features: as given, else that of what made them; never by the shape."""
    if isinstance(given, Mapping):
        given = given.get(name)
    if given is not None or len(shape) == 2:
        return resolve_channel_dim(len(shape), given)
    if not probed.axis:  # none, or the batch axis
        raise ValueError(
            f"nothing tells which axis of the output of {name!r}, shape {shape}, holds the channels; pass "
            f"channel_dim={{{name!r}: axis}}, 1 for (B, C, ...) and -1 for (B, ..., C)"
        )
    return probed.axis


def _check_names(names: list[str], modules: Mapping[str, nn.Module]) -> None:
    """Refuse names that the model does not have, or of modules that cannot be quantized."""
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
            isinstance(module, nn.Sequential) and not runs_its_children(module)
        ):
            inside = [child for child in modules if child.startswith(name + ".")][:5]
            raise ValueError(
                f"{name!r} is a {type(module).__name__}, whose children the model runs itself; name one of "
                f"them, such as {', '.join(map(repr, inside))}"
            )


def _output_shape(name: str, module: nn.Module, probed: Mapping[str, Probed]) -> tuple[int, ...]:
    if name not in probed:
        raise ValueError(f"{name!r} did not run in the probe forward, so its output cannot be quantized")
    result = probed[name]
    if result.shape is None:
        raise ValueError(f"the output of {name!r} holds no features: no floating tensor with a channel axis")
    if result.in_tuple and runs_its_children(module):
        raise ValueError(f"{name!r} is a Sequential that returns several values; name its last child instead")
    return result.shape


def _codes_of(name: str, num_codes: int | Mapping[str, int]) -> int:
    if not isinstance(num_codes, Mapping):
        return num_codes
    if name not in num_codes:
        raise ValueError(f"num_codes has no entry for {name!r}; it has {', '.join(map(repr, num_codes))}")
    return num_codes[name]


def _choose(probed: Mapping[str, Probed], modules: Mapping[str, nn.Module], example_inputs: Any) -> list[str]:
    """Choose the outermost module that finishes last at each resolution between the input's and 1 x 1."""
    args, kwargs = arguments(example_inputs)
    maps = [x.shape[2:] for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.ndim >= 4]
    largest = max((max(shape) for shape in maps), default=0)
    # The last child of a Sequential finishes with the same features, so a Sequential itself is never chosen.
    producers = {
        name: result.shape
        for name, result in probed.items()
        if result.shape is not None and len(result.shape) >= 4 and result.calls == 1
        if not isinstance(modules[name], nn.Sequential | FeatureQuantizer)
        if not result.is_output
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
        some = ", ".join(f"{name!r} {result.shape}" for name, result in list(probed.items())[:8])
        raise ValueError(
            f'layers="auto" finds no feature maps smaller than the input that are not the network\'s own '
            f"output; name layers, for example {some}"
        )
    return list(chosen.values())
