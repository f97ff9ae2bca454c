"""Loading a saved state completely or not at all, and keeping it float32."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def check_state(state: Mapping[str, Any], prefix: str, expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    """List what keeps a saved state from being loaded into a quantizer.

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
            f"{', '.join(missing)} missing. A quantizer without its dictionary would quantize with a random "
            "one, so nothing was loaded into it, whatever strict says. If this checkpoint has no quantizer, "
            "load it before adding one, or let the layer keep what it has: "
            f"state.update(layer.state_dict(prefix={prefix!r}))"
        ]
    problems = []
    for name, shape in expected.items():
        value = state[prefix + name]
        if not isinstance(value, Tensor):
            problems.append(f"{prefix}{name} is a {type(value).__name__}, expected a tensor")
        elif name == "codebook" and tuple(value.shape) != shape and value.ndim == 2:
            problems.append(
                f"{prefix}codebook has {value.shape[0]} codes of dim {value.shape[1]}, but this layer has "
                f"{shape[0]} codes of dim {shape[1]}; nothing was loaded into it"
            )
        elif tuple(value.shape) != shape:
            problems.append(f"{prefix}{name} has shape {tuple(value.shape)}, expected {shape}")
    return problems


def check_whole_state(module: nn.Module, state: Mapping[str, Any], *, strict: bool) -> None:
    """Refuse a state that does not fit a quantizer on its own, before anything of it is loaded.

    Args:
        module: the quantizer.
        state: the saved state.
        strict: whether entries that the quantizer does not have are refused too.

    Raises:
        RuntimeError: naming everything that is wrong.
    """
    own = module.state_dict()
    problems = check_state(state, "", {name: tuple(value.shape) for name, value in own.items()})
    unexpected = [name for name in state if name not in own]
    if strict and unexpected:
        problems.append(f"unexpected entries: {', '.join(unexpected)}")
    if problems:
        raise RuntimeError(f"cannot load this state into {type(module).__name__}: " + "; ".join(problems))


def with_chosen_counts(state: Mapping[str, Any], prefix: str, wanted: bool) -> Mapping[str, Any]:
    """Return a saved state with ``chosen_counts`` if they are wanted, and without them if not.

    A dictionary that restarts codes saves them, and others do not; one may be loaded into the other.  What
    the data chose is then taken for all that the moving counts hold.
    """
    name, counts = prefix + "chosen_counts", prefix + "ema_counts"
    if wanted and name not in state and counts in state:
        return {**state, name: state[counts]}
    if not wanted and name in state:
        return {key: value for key, value in state.items() if key != name}
    return state


def keep_float32(module: nn.Module) -> None:
    """Undo a cast of buffers that went around `nn.Module._apply`, as those of FSDP do."""
    for name, buffer in module._buffers.items():
        if buffer is not None and buffer.is_floating_point() and buffer.dtype != torch.float32:
            module._buffers[name] = buffer.float()


def restore_dtypes(module: nn.Module, before: Iterable[tuple[str, Tensor | None]]) -> None:
    """Give buffers that have followed a model through ``half()`` or ``to(dtype)`` their values back.

    In half precision the moving averages would stop: ``(1 - decay) * count`` falls below their last digit.

    Args:
        module: the module after the cast.
        before: its buffers before the cast, by name.
    """
    for name, buffer in before:
        moved = module._buffers[name]
        if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
            # From the old tensor, as the cast has cut its digits off.
            module._buffers[name] = buffer.to(moved.device)
