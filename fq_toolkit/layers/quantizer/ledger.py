"""The commitment loss of one layer: how it is computed, and where it waits until somebody reads it."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from fq_toolkit.kernels import private

#: Unread losses kept per layer. Each keeps its graph alive, so there must be a bound.
MAX_UNREAD = 8


def per_sample_loss(
    sq_error: Tensor, mask: Tensor | None, batch: int, channels: int, positions: Any, commitment: float
) -> Tensor:
    r"""Return the commitment loss of each sample, ``(B,)``; 0 for a sample without a real position.

    .. math:: loss_b = \beta \, \mathrm{mean}_{c, p} (\mathrm{sg}(q) - x)^2

    Args:
        sq_error: ``(B,)``, the squared error summed over channels and real positions.
        mask: ``(B * positions,)`` bool, or None.
        batch: B.
        channels: over which the mean is taken, those of all heads.
        positions: how many a sample has; an integer, or a symbol of one in a traced graph.
        commitment: the weight.

    Source: arXiv 2004.02088, equation 5, its second term.
    """
    if mask is None:
        return sq_error * (commitment / max(channels * positions, 1))
    # Only real positions share in the mean. A sample without any has no error either: 0 / 1.
    real = mask.view(batch, positions).sum(dim=1).clamp(min=1)
    return sq_error * (commitment / channels) / real


class _Nothing:
    """Fills the empty places of a ledger. Not None: `torch.compile` would guard on a tuple of constants."""


_NOTHING = _Nothing()
EMPTY = (_NOTHING,) * MAX_UNREAD


class CommitmentLedger:
    """The unread per-sample losses of one layer, newest first, in a tuple of fixed length.

    The length never changes and old entries are only moved, never looked at, so `torch.compile` puts no guard
    on them: recording is free of recompiles and of graph breaks.
    """

    def __init__(self) -> None:
        self.unread: tuple[Tensor | _Nothing, ...] = EMPTY
        self.warned = False
        self.dropped = False

    def record(self, loss: Tensor) -> None:
        """Add the ``(B,)`` loss of one call; the oldest is dropped when nobody reads.

        Not inside a transform of `torch.func`, after whose end its tensors are dead.
        """
        if private.under_transform():
            return
        if not torch.compiler.is_compiling() and isinstance(self.unread[-1], Tensor) and not self.warned:
            self.warned = True
            warnings.warn(
                f"{MAX_UNREAD} commitment losses of a FeatureQuantizer are unread, so the oldest are now "
                "dropped; add commitment_loss(model) to the loss, or run forwards that need none under "
                "torch.no_grad() or frozen(model)",
                stacklevel=3,
            )
        self.unread = (loss, *self.unread[:-1])

    def losses(self) -> list[Tensor]:
        """Return the unread losses, oldest first."""
        return [loss for loss in reversed(self.unread) if isinstance(loss, Tensor)]

    def take(self) -> list[Tensor]:
        """Return the unread losses, oldest first, and leave none behind."""
        losses, self.unread = self.losses(), EMPTY
        return losses

    def __getstate__(self) -> dict[str, Any]:
        return {}  # a copy or a pickle must not drag the graphs of the original along

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
