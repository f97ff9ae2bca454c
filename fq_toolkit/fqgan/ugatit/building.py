"""The networks of U-GAT-IT from its options."""

from torch import nn

from fq_toolkit.fqgan.ugatit.config import UGATITConfig
from fq_toolkit.fqgan.ugatit.networks import Critics, Translators, UGATITDiscriminator, UGATITGenerator
from fq_toolkit.layers import FeatureQuantizer
from fq_toolkit.training.seeding import isolated_rng


def build_networks(config: UGATITConfig, channels: int) -> tuple[Translators, Critics]:
    """Build generators and discriminators; draws from the global random state.

    Args:
        config: sizes and layers.
        channels: channels of the images.
    """

    def generator() -> UGATITGenerator:
        return UGATITGenerator(
            channels=channels,
            size=config.image_size,
            width=config.width,
            blocks=config.blocks,
            light=config.light,
        )

    def critic(layers: int, quantizers: dict[int, nn.Module]) -> UGATITDiscriminator:
        return UGATITDiscriminator(
            channels=channels, layers=layers, width=config.width, quantizers=quantizers
        )

    def quantizers() -> dict[int, nn.Module]:
        if config.fq == "none":
            return {}
        with isolated_rng(config.seed):  # the other weights are the same with and without quantization
            return {
                layer: FeatureQuantizer(
                    config.width * 2**layer,
                    codes,
                    mode=config.fq,
                    decay=config.decay,
                    commitment=config.commitment,
                    init=config.fq_init,
                    revive=config.fq_revive,
                    update_every=config.accumulate if config.fq_update_per == "update" else 1,
                )
                for layer, codes in zip(config.fq_layers, config.num_codes, strict=True)
            }

    translators = Translators(generator)
    critics = Critics(
        lambda: critic(config.global_layers, quantizers()), lambda: critic(config.local_layers, {})
    )
    return translators, critics
