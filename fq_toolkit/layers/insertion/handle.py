"""What is put into a quantized network, and the way back out of it."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn
from torch.utils.hooks import RemovableHandle

from fq_toolkit.layers.insertion.features import replace_features
from fq_toolkit.layers.quantizer.feature_quantizer import FeatureQuantizer
from fq_toolkit.layers.quantizer.report import format_table
from fq_toolkit.layers.quantizer.updates import CoalescedUpdates, forget_coalescing

#: Name of the child module that is added to a quantized module.
CHILD = "feature_quantizer"


def quantize_output(module: nn.Module, args: Any, output: Any) -> Any:
    """Quantize what a module returns; its forward hook.

    The hook finds the quantizer through the module that runs, not through a closure, so a deep copy of the
    network quantizes with the copy's own dictionary.
    """
    return replace_features(output, module._modules[CHILD])


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
        """Return the parameters that came with the quantizers, for the optimizer: projections, if any."""
        if self._model is None:
            return []
        modules = dict(self._model.named_modules(remove_duplicate=False))
        held = (modules[layer.name]._modules.get(CHILD) for layer in self.layers if layer.name in modules)
        return [
            parameter for quantizer in held if quantizer is not None for parameter in quantizer.parameters()
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
