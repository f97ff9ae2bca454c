"""Nested state <-> (flat tensors, JSON): what safetensors can hold, and the rest. Nothing is pickled.

``pack`` replaces every tensor in a nest of dicts, lists and tuples by a reference to its name; ``unpack``
puts them back. Keys that are not strings (optimizers number their parameters) and tuples survive the trip
through JSON.
"""

from typing import Any

import torch
from torch import Tensor

from fq_toolkit.training.errors import CheckpointError

_TENSOR, _PAIRS, _TUPLE = "$tensor", "$pairs", "$tuple"


def pack(state: Any) -> tuple[dict[str, Tensor], Any]:
    """Split a nested state into tensors and JSON.

    Args:
        state: nest of dicts, lists, tuples, tensors, numbers, strings, booleans and None.

    Returns:
        (name -> contiguous CPU tensor that shares memory with nothing, the rest as JSON values).

    Raises:
        TypeError: for a value that is none of these; the message names its place.
    """
    tensors: dict[str, Tensor] = {}

    def visit(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            name = path or "value"
            while name in tensors:  # {"a/b": ...} beside {"a": {"b": ...}}
                name += "+"
            copy = torch.empty(value.shape, dtype=value.dtype)
            tensors[name] = copy.copy_(value.detach())
            return {_TENSOR: name}
        if isinstance(value, dict):
            items = [(key, visit(item, f"{path}/{key}" if path else str(key))) for key, item in value.items()]
            if all(isinstance(key, str) and not key.startswith("$") for key, _ in items):
                return dict(items)
            return {_PAIRS: [list(item) for item in items]}
        if isinstance(value, (list, tuple)):
            entries = [visit(item, f"{path}/{i}") for i, item in enumerate(value)]
            return {_TUPLE: entries} if isinstance(value, tuple) else entries
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise TypeError(
            f"cannot save {path or 'the state'}: {type(value).__name__} is neither tensor nor JSON"
        )

    rest = visit(state, "")
    return tensors, rest


def unpack(tensors: dict[str, Tensor], rest: Any) -> Any:
    """Undo `pack`.

    Raises:
        CheckpointError: when a tensor that the JSON part refers to is missing.
    """
    if isinstance(rest, dict):
        if set(rest) == {_TENSOR}:
            if not isinstance(rest[_TENSOR], str) or rest[_TENSOR] not in tensors:
                raise CheckpointError(f"the checkpoint lacks the tensor {rest[_TENSOR]!r}")
            return tensors[rest[_TENSOR]]
        if set(rest) == {_PAIRS}:
            return {key: unpack(tensors, item) for key, item in rest[_PAIRS]}
        if set(rest) == {_TUPLE}:
            return tuple(unpack(tensors, item) for item in rest[_TUPLE])
        return {key: unpack(tensors, item) for key, item in rest.items()}
    if isinstance(rest, list):
        return [unpack(tensors, item) for item in rest]
    return rest
