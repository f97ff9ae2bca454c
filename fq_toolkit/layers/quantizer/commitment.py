"""Reading the commitment losses that a model's quantizers have recorded."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fq_toolkit.kernels import private
from fq_toolkit.layers.codebook.statistics import batch_mean
from fq_toolkit.layers.quantizer.feature_quantizer import FeatureQuantizer
from fq_toolkit.layers.quantizer.ledger import EMPTY


def quantizers(model: nn.Module) -> Iterator[tuple[str, FeatureQuantizer]]:
    """Yield every quantizer in ``model``, itself included, with its name; a shared one comes once."""
    for name, module in model.named_modules():
        if isinstance(module, FeatureQuantizer):
            yield name, module


def commitment_loss(model: nn.Module) -> Tensor:
    r"""Read and clear the commitment losses of every quantizer in a model.

    .. math:: \sum_{layers} \sum_{calls} \frac1B \sum_b \beta \, \mathrm{mean}_{c,p} (\mathrm{sg}(q) - x)^2

    Losses add up over the calls since they were last read, so a discriminator that is called once for real
    and once for fake samples counts both.  Calls without grad are not recorded.  At most 8 calls per
    layer are kept.

    Args:
        model: any module that contains `FeatureQuantizer` layers, or one of them.

    Returns:
        A scalar float32; zero when nothing was recorded.

    Raises:
        ValueError: the model holds no quantizer, so the zero would hide a mistake.
        RuntimeError: inside a transform of `torch.func`, where calls are not recorded.

    Example:
        >>> import torch
        >>> from fq_toolkit import FeatureQuantizer, commitment_loss
        >>> layer = FeatureQuantizer(4, 8)
        >>> x = torch.randn(2, 4, 5, 5, requires_grad=True)
        >>> _ = layer(x)
        >>> commitment_loss(layer) > 0, commitment_loss(layer)
        (tensor(True), tensor(0.))

    Source: arXiv 2004.02088, equation 5.
    """
    layers = [layer for _, layer in quantizers(model)]
    if not layers:
        raise ValueError(
            f"{type(model).__name__} contains no FeatureQuantizer, so there is no commitment loss to read"
        )
    if private.under_transform():
        raise RuntimeError(
            "commitment_loss(model) reads what forwards have recorded, which they do not inside transforms "
            "of torch.func and under forward derivatives; add layer.quantize(x).loss there"
        )
    total = layers[0].codebook.new_zeros(())
    losses = [layer.ledger.take() for layer in layers]
    if any(layer.ledger.dropped for layer in layers):
        if not any(losses):
            warnings.warn(
                "commitment_loss is 0: nothing was recorded since a frozen block, whose own losses ended "
                "with it; read them inside: with frozen(model): ... commitment_loss(model)",
                stacklevel=2,
            )
        for layer in layers:
            layer.ledger.dropped = False
    for loss in itertools.chain.from_iterable(losses):
        total = total + batch_mean(loss).to(total.device)
    return total


class CollectedCommitment:
    """What `collect_commitment` yields: the losses of the calls inside its block."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._closed: dict[str, list[Tensor]] | None = None

    @property
    def per_sample(self) -> dict[str, list[Tensor]]:
        """The ``(B,)`` losses of the calls of each layer, in order, by the layer's name."""
        if self._closed is not None:
            return self._closed
        return {name: layer.ledger.losses() for name, layer in quantizers(self._model)}

    def total(self) -> Tensor:
        """Return the sum over layers and calls of the batch means, as `commitment_loss`; clears nothing."""
        means = [batch_mean(loss) for losses in self.per_sample.values() for loss in losses]
        return torch.stack(means).sum() if means else torch.zeros(())

    def _close(self) -> None:
        self._closed = {name: layer.ledger.take() for name, layer in quantizers(self._model)}


@contextlib.contextmanager
def collect_commitment(model: nn.Module) -> Iterator[CollectedCommitment]:
    """Collect the losses of the calls inside the block, apart from all others.

    Args:
        model: any module that contains `FeatureQuantizer` layers.

    Yields:
        The collected losses, valid inside the block and after it.

    Example:
        >>> import torch
        >>> from fq_toolkit import FeatureQuantizer, collect_commitment
        >>> layer = FeatureQuantizer(4, 8)
        >>> with collect_commitment(layer) as real:
        ...     _ = layer(torch.randn(3, 4, requires_grad=True))
        >>> [loss.shape for loss in real.per_sample[""]]
        [torch.Size([3])]
    """
    with fresh_ledgers(model):
        collected = CollectedCommitment(model)
        yield collected
        collected._close()


@contextlib.contextmanager
def fresh_ledgers(model: nn.Module) -> Iterator[None]:
    """Run a block with empty ledgers; at its end drop what is unread and put the former contents back."""
    ledgers = [layer.ledger for _, layer in quantizers(model)]
    outside = [ledger.unread for ledger in ledgers]
    for ledger in ledgers:
        ledger.unread = EMPTY
    try:
        yield
    finally:
        for ledger, unread in zip(ledgers, outside, strict=True):
            ledger.dropped = bool(ledger.losses())
            ledger.unread = unread
