"""Gradient accumulation: one update from several forwards, as if it were one of the whole batch."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

from torch import Tensor


def update(
    accelerator: Any,
    model: Any,
    optimizer: Any,
    losses: Iterator[tuple[Tensor, dict[str, Tensor]]],
    parts: int,
    *,
    clip: float = 0.0,
) -> dict[str, Tensor]:
    """Do one step of an optimizer on the mean of losses.

    Losses that are means over batches of one size give the gradient of the mean over all of their samples.
    Only one forward's graph is in memory at a time.

    Args:
        accelerator: an ``accelerate.Accelerator``.
        model: the wrapped network that learns; processes average its gradients in the last backward.
        optimizer: of that network.
        losses: yields (0-dim loss, 0-dim values to be logged) of every forward, which it does when asked.
        parts: how many there are.
        clip: largest norm of the gradient; 0 does not clip.

    Returns:
        The values, each the mean over the forwards, without a graph.
    """
    optimizer.zero_grad()
    totals: dict[str, Tensor] = {}
    for part in range(parts):
        # The forward has to be in here too: that is where processes prepare for averaging.
        with nullcontext() if part == parts - 1 else accelerator.no_sync(model):
            loss, values = next(losses)
            accelerator.backward(loss / parts)  # gradients add up to that of the mean
        for name, value in values.items():
            share = value.detach() / parts
            totals[name] = totals[name] + share if name in totals else share
    if clip:
        accelerator.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return totals
