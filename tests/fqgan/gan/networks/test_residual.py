import dataclasses

import pytest
import torch
from torch import nn

from fq_toolkit import FeatureQuantizer
from fq_toolkit.fqgan.data.datasets import ImageDataset
from fq_toolkit.fqgan.gan.config import FQGANConfig
from fq_toolkit.fqgan.gan.networks.blocks import ConditionalBatchNorm, DiscriminatorBlock
from fq_toolkit.fqgan.gan.networks.families import build_networks
from fq_toolkit.fqgan.gan.networks.quantization import quantizer_factory, quantizers
from fq_toolkit.training.errors import ConfigError


def dataset(size: int, channels: int = 1, classes: int = 3) -> ImageDataset:
    return ImageDataset("test", torch.zeros(2, channels, size, size), torch.zeros(2).long(), classes, "none")


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (16, 1), (32, 3), (64, 3)])
@pytest.mark.parametrize("fq", ["none", "regularize"])
def test_shapes(tiny: FQGANConfig, size: int, channels: int, fq: str) -> None:
    config = dataclasses.replace(tiny, fq=fq, fq_layers=(0, 1))
    data = dataset(size, channels)
    generator, discriminator = build_networks(config, data, quantizer_factory(config))
    labels = torch.tensor([0, 1, 2, 1])
    images = generator(torch.randn(4, config.latent_size), labels)
    assert images.shape == (4, channels, size, size)
    assert images.abs().max() <= 1
    assert discriminator(images, labels).shape == (4,)
    assert len(quantizers(discriminator)) == (2 if fq != "none" else 0)


@pytest.mark.parametrize("size", [4, 12, 20])
def test_sizes_that_do_not_fit(tiny: FQGANConfig, size: int) -> None:
    with pytest.raises(ConfigError, match=rf"images are \({size}, {size}\); expected square"):
        build_networks(tiny, dataset(size), None)


def test_a_block_that_does_not_exist(tiny: FQGANConfig) -> None:
    config = dataclasses.replace(tiny, fq_layers=(0, 3))
    with pytest.raises(ConfigError, match="has blocks 0 to 2"):
        build_networks(config, dataset(16), quantizer_factory(config))


def test_quantizers_sit_after_their_blocks(tiny: FQGANConfig) -> None:
    config = dataclasses.replace(tiny, fq_layers=(2, 0), commitment=2.0, decay=0.8)
    _, discriminator = build_networks(config, dataset(16), quantizer_factory(config))
    layers = quantizers(discriminator)
    assert [(layer.dim, layer.num_codes) for layer in layers] == [(4, 8), (16, 8)]
    assert all(isinstance(layer, FeatureQuantizer) for layer in layers)
    assert {(layer.mode, layer.commitment, layer.decay) for layer in layers} == {("regularize", 2.0, 0.8)}
    seen: list[str] = []
    for i, block in enumerate(discriminator.blocks):
        block.register_forward_hook(lambda *_, i=i: seen.append(f"block{i}"))
    for i, layer in discriminator.quantizers.items():
        layer.register_forward_hook(lambda *_, i=i: seen.append(f"fq{i}"))
    discriminator(torch.randn(2, 1, 16, 16), torch.tensor([0, 1]))
    assert seen == ["block0", "fq0", "block1", "block2", "fq2"]


def test_the_class_matters(tiny: FQGANConfig) -> None:
    generator, discriminator = build_networks(tiny, dataset(16), None)
    for norm in generator.modules():
        if isinstance(norm, ConditionalBatchNorm):
            nn.init.normal_(norm.modulation.weight)
    z, images = torch.randn(1, tiny.latent_size).repeat(2, 1), torch.randn(1, 1, 16, 16).repeat(2, 1, 1, 1)
    generator.eval()
    discriminator.eval()
    a, b = generator(z, torch.tensor([0, 1]))
    assert not torch.allclose(a, b)
    scores = discriminator(images, torch.tensor([0, 1]))
    assert scores[0] != scores[1]


def test_spectral_norm_holds_after_training_steps() -> None:
    block = DiscriminatorBlock(3, 5, down=True)
    with torch.no_grad():
        block.conv1.parametrizations.weight.original.mul_(50)
    for _ in range(30):  # one power iteration each
        block(torch.randn(2, 3, 8, 8))
    for conv in (block.conv1, block.conv2, block.shortcut):
        assert float(torch.linalg.matrix_norm(conv.weight.detach().flatten(1), 2)) == pytest.approx(
            1, abs=0.02
        )
