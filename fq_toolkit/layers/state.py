"""Checking a saved state before any of it is copied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def check_state(state: Mapping[str, Any], prefix: str, expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What keeps a saved state from being loaded into a quantizer.

    Args:
        state: the saved state, of the quantizer or of a model around it.
        prefix: what stands before the quantizer's names in it.
        expected: the shapes of the quantizer's own state.

    Returns:
        Messages; none if the state fits.
    """
    missing = [prefix + name for name in expected if prefix + name not in state]
    if missing:
        return [
            f"{', '.join(missing)} missing. A quantizer without its dictionary would quantize with a random one, so "
            "nothing was loaded into it; load a checkpoint without quantizers before adding them"
        ]
    problems = []
    for name, shape in expected.items():
        value = state[prefix + name]
        if not isinstance(value, Tensor):
            problems.append(f"{prefix}{name} is a {type(value).__name__}, expected a tensor")
        elif name == "codebook" and tuple(value.shape) != shape and value.ndim == 2:
            problems.append(
                f"{prefix}codebook has {value.shape[0]} codes of dim {value.shape[1]}, but this layer has {shape[0]} "
                f"codes of dim {shape[1]}; nothing was loaded into it"
            )
        elif tuple(value.shape) != shape:
            problems.append(f"{prefix}{name} has shape {tuple(value.shape)}, expected {shape}")
    return problems
