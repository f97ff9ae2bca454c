"""The features in what a module returns, and the same with them quantized."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def features_in(output: Any) -> Tensor | None:
    """Return the features in a module's output: itself, or the first in a container; None without any."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() and output.ndim >= 2 else None
    items: Iterable[Any] = ()
    if isinstance(output, Mapping):
        items = output.values()
    elif isinstance(output, tuple | list):
        items = output
    candidates = (features_in(item) for item in items if isinstance(item, Tensor))
    return next((features for features in candidates if features is not None), None)


def replace_features(output: Any, quantizer: Any) -> Any:
    """Return the same output with its features quantized."""
    features = features_in(output)
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


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield all tensors in what a model returned: in containers, dataclasses and objects with attributes."""
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
