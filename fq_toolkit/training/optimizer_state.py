"""Optimizer state that survives a checkpoint bit by bit."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def load_optimizer(optimizer: Any, state: Mapping[str, Any]) -> None:
    """Load an optimizer's state dict and give every moment the memory layout of its parameter.

    Files hold contiguous tensors; a parameter in channels_last whose moments are not takes the slow path of
    the optimizer, and fused kernels expect both to be laid out alike.

    Args:
        optimizer: a torch optimizer, or accelerate's wrapper of one.
        state: what its ``state_dict`` returned.
    """
    optimizer.load_state_dict(state)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            moments = optimizer.state.get(parameter, {})
            for name, value in moments.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim:
                    moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
