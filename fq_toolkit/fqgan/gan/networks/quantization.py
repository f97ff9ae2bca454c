"""Where feature quantization meets the trainer: layers, warm-up, losses, readings."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from fq_toolkit.fqgan.gan.config import FQGANConfig
from fq_toolkit.layers import FeatureQuantizer, commitment_loss


def quantizer_factory(config: FQGANConfig) -> Callable[[int], nn.Module] | None:
    """Return number of channels -> layer, or None for ``fq="none"``."""
    if config.fq == "none":
        return None

    def make(channels: int) -> nn.Module:
        return FeatureQuantizer(
            channels,
            config.num_codes,
            mode=config.fq,
            decay=config.decay,
            commitment=config.commitment,
            ema=config.fq_ema,
            init=config.fq_init,
            revive=config.fq_revive,
            update_every=config.accumulate if config.fq_update_per == "update" else 1,
        )

    return make


def warmup_strength(step: int, *, warmup: int, strength: float) -> float:
    """Return how strong straight-through quantization is: it rises linearly from 0 and then stays.

    ``strength * min(1, step / warmup)``

    Args:
        step: from 0.
        warmup: steps of the rise; 0 starts at full strength.
        strength: after that.
    """
    return strength * min(1.0, step / warmup) if warmup else strength


def quantizers(discriminator: nn.Module) -> list[FeatureQuantizer]:
    """Return the FQ layers of a discriminator in the order of its blocks."""
    return [module for module in discriminator.modules() if isinstance(module, FeatureQuantizer)]


def halves_commitment(discriminator: nn.Module) -> Tensor:
    """Return ``mean over fakes + mean over reals`` of the last concatenated call, as released.

    Both halves are equally large, so it is twice the mean over the batch.
    """
    return 2 * commitment_loss(discriminator)


class Reading(NamedTuple):
    """How much of a dictionary is in use, as the layer counts it.

    usage: share of the codes, in [0, 1].
    perplexity: how many codes are in even use, in [1, K].
    """

    usage: float
    perplexity: float


def read_dictionary(layer: FeatureQuantizer) -> Reading:
    """What a layer says of itself; waits for the device."""
    return Reading(layer.usage(), layer.perplexity())
