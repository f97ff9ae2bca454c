"""Where feature quantization meets the trainers: layers, warm-up, loss, gauges."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor, nn

from fq_toolkit.fqgan.gan.config import FQGANConfig
from fq_toolkit.layers import FeatureQuantizer, commitment_loss


def make_quantizer(
    config: Any, channels: int, num_codes: int, *, ema: Literal["smoothed", "debiased"] = "smoothed"
) -> FeatureQuantizer:
    """Return a quantizing layer from the options that both trainers share.

    Args:
        config: with ``fq``, ``decay``, ``commitment``, ``fq_init``, ``fq_revive``, ``fq_update_per`` and
            ``accumulate``.
        channels: of the features.
        num_codes: K.
        ema: see `FeatureQuantizer`.
    """
    return FeatureQuantizer(
        channels,
        num_codes,
        mode=config.fq,
        decay=config.decay,
        commitment=config.commitment,
        ema=ema,
        init=config.fq_init,
        revive=config.fq_revive,
        # The option was a count before the layer knew shares, and older runs have it in config.json.
        revive_by="count",
        # Counted in forwards, of which an update has `accumulate`.
        update_every=config.accumulate if config.fq_update_per == "update" else 1,
    )


def quantizer_factory(config: FQGANConfig) -> Callable[[int], nn.Module] | None:
    """Return number of channels -> layer, or None for ``fq="none"``."""
    if config.fq == "none":
        return None
    return lambda channels: make_quantizer(config, channels, config.num_codes, ema=config.fq_ema)


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
    """Return the commitment of fakes plus that of reals, each a mean, of the last concatenated call.

    ``mean over fakes of L_Q + mean over reals of L_Q``, as released. Both halves are equally large, so it is
    twice the mean over the batch.

    Source: arXiv 2004.02088, equation 5.
    """
    return 2 * commitment_loss(discriminator)


def dictionary_gauges(layers: Mapping[str, FeatureQuantizer], *, strength: float | None) -> dict[str, float]:
    """Return how much of each dictionary is in use, as columns of ``metrics.csv``. Waits for the device.

    Args:
        layers: name -> layer.
        strength: of straight-through quantization; None in other modes.

    Returns:
        ``usage/NAME``, the share of codes in use, ``perplexity/NAME``, how many are in even use, and
        ``strength/fq``.
    """
    readings = {}
    for name, layer in layers.items():
        readings[f"usage/{name}"] = layer.usage()
        readings[f"perplexity/{name}"] = layer.perplexity()
    if layers and strength is not None:
        readings["strength/fq"] = strength
    return readings
