"""A module whose state stays float32 and loads completely or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


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


class StrictState(nn.Module):
    """The part of a quantizer that guards its buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen_depth = 0

    def after_load(self) -> None:
        """Bring what is not saved in line with what was loaded."""
        raise NotImplementedError

    def translate(self, state: Mapping[str, Any], prefix: str) -> Mapping[str, Any]:
        """A saved state in the terms of these settings; others may save more or less."""
        return state

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> StrictState:
        """Follow the model to another device but stay float32: half precision would stop the averages."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self

    def keep_float32(self) -> None:
        """Undo a cast that went around `_apply`, as the buffer casts of FSDP do."""
        for name, buffer in self._buffers.items():
            if buffer is not None and buffer.is_floating_point() and buffer.dtype != torch.float32:
                self._buffers[name] = buffer.float()

    def _problems(self, state: Mapping[str, Any], prefix: str) -> list[str]:
        return check_state(state, prefix, {name: tuple(own.shape) for name, own in self.state_dict().items()})

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load a saved state, all of it or nothing.

        Args:
            state_dict: what ``state_dict()`` returned.
            strict: refuse unexpected entries; missing ones are always refused.
            assign: as in `torch.nn.Module.load_state_dict`.

        Raises:
            RuntimeError: another K or dim, or an incomplete state. Nothing has changed then.
        """
        state_dict = self.translate(state_dict, "")
        problems = self._problems(state_dict, "")
        own = self.state_dict()
        unexpected = [name for name in state_dict if name not in own]
        if strict and unexpected:
            problems.append(f"unexpected entries: {', '.join(unexpected)}")
        if problems:
            raise RuntimeError(f"cannot load this state into {type(self).__name__}: " + "; ".join(problems))
        return super().load_state_dict(state_dict, strict, assign)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        state_dict = self.translate(state_dict, prefix)
        problems = self._problems(state_dict, prefix)
        if problems:
            error_msgs.extend(problems)
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self.after_load()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["frozen_depth"] = 0  # a copy made inside frozen() has no end of the block to wait for
        return state
