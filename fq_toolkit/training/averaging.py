"""A moving average of a model's weights, with a ramp."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average over the whole state of a model.

    After update t = 1, 2, ...: ``average <- d_t average + (1 - d_t) current`` with
    ``d_t = min(decay, (1 + t) / (10 + t))``: the ramp forgets the random start. Integer buffers are copied.

    Args:
        model: the model that is trained; it is copied.
        decay: weight of the past, in [0, 1).
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; expected 0 <= decay < 1")
        self.decay = decay
        self.updates = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        # State tensors are only ever changed in place, so the pairs can be collected once.
        mine, theirs = self.model.state_dict(), model.state_dict(keep_vars=True)
        floats = [name for name, value in mine.items() if value.is_floating_point()]
        self._average = [mine[name] for name in floats]
        self._current = [theirs[name].detach() for name in floats]
        self._copies = [(mine[name], theirs[name]) for name in mine if name not in set(floats)]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's weights of now."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._average, self._current, 1 - decay)
        for mine, theirs in self._copies:
            mine.copy_(theirs)

    def state_dict(self) -> dict[str, Any]:
        """Return the averaged weights and the number of updates."""
        return {"model": dict(self.model.state_dict()), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        weights: Mapping[str, Tensor] = state["model"]
        self.model.load_state_dict(weights)
        self.updates = state["updates"]
