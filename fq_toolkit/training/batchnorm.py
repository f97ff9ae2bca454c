"""Batch-norm statistics for averaged weights."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


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
        norm.reset_running_stats()
        norm.momentum = None  # cumulative mean
    model.train()
    try:
        for _ in range(batches):
            forward()
    finally:
        model.eval()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
