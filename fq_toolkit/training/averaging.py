"""A moving average of a model's weights, with a ramp, and batch-norm statistics that belong to it."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


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
        # The ramp: early on the average forgets the random start in tens of updates, not in thousands.
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._average, self._current, 1 - decay)
        for mine, theirs in self._copies:
            mine.copy_(theirs)

    def state_dict(self) -> dict[str, Any]:
        """Return the averaged weights and the number of updates."""
        return {"model": dict(self.model.state_dict()), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        weights: Mapping[str, Tensor] = state["model"]
        self.model.load_state_dict(weights)
        self.updates = state["updates"]


@torch.no_grad()
def recalibrate_batchnorm(model: nn.Module, forward: Callable[[], object], *, batches: int) -> None:
    """Replace all running statistics by plain means over fresh batches.

    Averaged weights never saw a batch: the running statistics copied along with them belong to other weights,
    and sampling with them looks far worse than the model is.

    Args:
        model: the model that samples; left in eval mode.
        forward: runs one batch through the model.
        batches: how many; 0 leaves everything as it is.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not norms or batches < 1:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()  # what was copied along belongs to weights that are no more
        norm.momentum = None  # cumulative mean
    model.train()
    try:
        for _ in range(batches):
            forward()
    finally:
        model.eval()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
