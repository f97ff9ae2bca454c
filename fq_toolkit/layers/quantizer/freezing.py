"""Holding the dictionaries of a model still."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TypeVar

from torch import nn

from fq_toolkit.layers.quantizer.commitment import quantizers, separate_books

ModelT = TypeVar("ModelT", bound=nn.Module)


@contextlib.contextmanager
def frozen(model: ModelT) -> Iterator[ModelT]:
    """Inside the block no dictionary in ``model`` moves, although the model stays in training mode.

    For the generator's step, a gradient penalty, or an evaluation in training mode.  The commitment losses of
    the block have books of their own: `commitment_loss` called inside reads only the calls inside, and what
    is unread at the end is dropped, so that a gradient penalty leaves no freed graph behind for the next
    read.

    Args:
        model: any module that contains `FeatureQuantizer` layers.

    Yields:
        The model.

    Example:
        >>> import torch
        >>> from fq_toolkit import FeatureQuantizer, frozen
        >>> layer = FeatureQuantizer(4, 8, init="normal")
        >>> before = layer.codebook.clone()
        >>> with frozen(layer):
        ...     _ = layer(torch.randn(3, 4))
        >>> torch.equal(layer.codebook, before)
        True
    """
    layers = [layer for _, layer in quantizers(model)]
    with separate_books(model):
        for layer in layers:
            layer.frozen_depth += 1
        try:
            yield model
        finally:
            for layer in layers:
                layer.frozen_depth -= 1
