"""BigGAN discriminators in the naming of the PyTorch releases of BigGAN and FQ-GAN.

In the releases a block is a list: the residual block, then its quantizer, then its attention, if there are
any. Spectral norm keeps the singular vector ``u0`` (1, rows) and, for logging, the singular value ``sv0``.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fq_toolkit.fqgan.gan.networks.residual import ResidualDiscriminator
from fq_toolkit.layers import FeatureQuantizer
from fq_toolkit.training.errors import CheckpointError

_BLOCK = {"conv1": "conv1", "conv2": "conv2", "shortcut": "conv_sc"}
_ATTENTION = ("theta", "phi", "g", "o")


class _Pair(NamedTuple):
    """A module and its released name."""

    name: str
    module: Any


def _layers(model: ResidualDiscriminator) -> Iterator[_Pair]:
    """Yield every layer that has a state: those with spectral norm, and the quantizers."""
    for i, block in enumerate(model.blocks):
        for ours, theirs in _BLOCK.items():
            layer = getattr(block, ours)
            if not isinstance(layer, nn.Identity):
                yield _Pair(f"blocks.{i}.0.{theirs}", layer)
        place = 1
        if str(i) in model.quantizers:
            yield _Pair(f"blocks.{i}.{place}", model.quantizers[str(i)])
            place += 1
        if str(i) in model.attention:
            for name in _ATTENTION:
                yield _Pair(f"blocks.{i}.{place}.{name}", getattr(model.attention[str(i)], name))
            yield _Pair(f"blocks.{i}.{place}", model.attention[str(i)])
    yield _Pair("linear", model.linear)
    yield _Pair("embed", model.project)


@torch.no_grad()
def to_released(model: ResidualDiscriminator) -> dict[str, Tensor]:
    """Return the state of a discriminator in the released naming."""
    state: dict[str, Tensor] = {}
    for name, layer in _layers(model):
        if isinstance(layer, FeatureQuantizer):
            state |= layer.to_reference(f"{name}.")
        elif hasattr(layer, "gamma"):
            state[f"{name}.gamma"] = layer.gamma.detach().clone()
        else:
            weight, left, right = _spectral(layer)
            state |= {f"{name}.weight": weight.detach().clone(), f"{name}.u0": left[None].clone()}
            state[f"{name}.sv0"] = (left @ (weight.flatten(1) @ right))[None]
            if getattr(layer, "bias", None) is not None:
                state[f"{name}.bias"] = layer.bias.detach().clone()
    return state


@torch.no_grad()
def load_released(model: ResidualDiscriminator, state: Mapping[str, Tensor]) -> None:
    """Load a discriminator's state in the released naming.

    Args:
        model: a discriminator of the same widths, classes, quantizers and attention.
        state: name -> tensor, such as ``torch.load("D.pth", weights_only=True)``.

    Raises:
        CheckpointError: naming what is missing, what is left over and what has another shape.
    """
    expected = {name: tuple(value.shape) for name, value in to_released(model).items()}
    given = {name: tuple(value.shape) for name, value in state.items()}
    if given != expected:
        lines = [f"{name} is missing" for name in expected.keys() - given.keys()]
        lines += [f"{name} is not part of this discriminator" for name in given.keys() - expected.keys()]
        lines += [
            f"{name} has shape {given[name]}, expected {shape}"
            for name, shape in expected.items()
            if given.get(name, shape) != shape
        ]
        shown = "".join(f"\n  {line}" for line in sorted(lines)[:10])
        raise CheckpointError(f"the state does not fit: {len(lines)} entries differ{shown}")
    for name, layer in _layers(model):
        if isinstance(layer, FeatureQuantizer):
            embed, counts, sums = (state[f"{name}.{part}"] for part in ("embed", "cluster_size", "embed_avg"))
            layer.adopt(embed.t(), counts, sums.t())
        elif hasattr(layer, "gamma"):
            layer.gamma.copy_(state[f"{name}.gamma"])
        else:
            weight, left, right = _spectral(layer)
            weight.copy_(state[f"{name}.weight"])
            left.copy_(state[f"{name}.u0"][0])
            # Torch keeps the right vector too; it follows from the left one by half a power iteration.
            right.copy_(nn.functional.normalize(left @ weight.flatten(1), dim=0))
            if getattr(layer, "bias", None) is not None:
                layer.bias.copy_(state[f"{name}.bias"])


def _spectral(layer: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weight under a layer's spectral norm, and the norm's left and right singular vectors."""
    raw = layer.parametrizations.weight
    return raw.original, raw[0]._u, raw[0]._v
