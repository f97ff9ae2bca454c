"""The families of GANs that one trainer trains: how to build their networks, and their losses."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fq_toolkit.fqgan.data.datasets import ImageDataset
from fq_toolkit.fqgan.gan.config import FQGANConfig
from fq_toolkit.fqgan.gan.losses import (
    hinge_discriminator_loss,
    hinge_generator_loss,
    logistic_discriminator_loss,
    logistic_generator_loss,
)
from fq_toolkit.fqgan.gan.networks.biggan import build_biggan
from fq_toolkit.fqgan.gan.networks.residual import ImageShape, MakeQuantizer, Networks, build_residual
from fq_toolkit.fqgan.gan.networks.stylegan2 import build_stylegan2


class Family(NamedTuple):
    """A family of GANs, as the trainer sees it.

    build: (options, shape of the images, number of channels -> quantizer or None) -> both networks.
    discriminator_loss: (scores of real images, scores of generated ones) -> 0-dim tensor.
    generator_loss: scores of generated images -> 0-dim tensor.
    memory_format: of the weights of both networks.
    """

    build: Callable[[FQGANConfig, ImageShape, MakeQuantizer | None], Networks]
    discriminator_loss: Callable[[Tensor, Tensor], Tensor]
    generator_loss: Callable[[Tensor], Tensor]
    memory_format: torch.memory_format = torch.channels_last


FAMILIES: dict[str, Family] = {
    "residual": Family(build_residual, hinge_discriminator_loss, hinge_generator_loss),
    "biggan": Family(build_biggan, hinge_discriminator_loss, hinge_generator_loss),
    "stylegan2": Family(
        build_stylegan2, logistic_discriminator_loss, logistic_generator_loss, torch.contiguous_format
    ),
}


def build_networks(config: FQGANConfig, data: ImageDataset, make_quantizer: MakeQuantizer | None) -> Networks:
    """Build the networks of ``config.family`` for a dataset.

    Args:
        config: family, widths and layers.
        data: gives image size and classes.
        make_quantizer: number of channels -> layer that goes after each of ``config.fq_layers``; None for no
            FQ.

    Raises:
        ConfigError: when the images do not fit the family, or a quantized block does not exist.
    """
    family = FAMILIES[config.family]
    _, channels, height, width = data.images.shape
    networks = family.build(config, ImageShape(channels, height, width, data.num_classes), make_quantizer)
    for network in networks:
        network.to(memory_format=family.memory_format)  # type: ignore[call-overload]
    return networks
