"""What the codes of a dictionary stand for: shared codes, patches, pictures."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fq_toolkit import FeatureQuantizer
from fq_toolkit.fqgan.gan.codebook import (
    CodedFeatures,
    code_features,
    codebook_pictures,
    shared_codes,
    typical_patches,
)
from fq_toolkit.fqgan.gan.runs import load_run
from fq_toolkit.training.errors import ConfigError
from tests.fqgan.data.image_data import picture_size

pytestmark = pytest.mark.usefixtures("small_and_plain")


def test_codes_that_are_shared() -> None:
    real = torch.tensor([0, 0, 0, 1, 1, 2])
    fake = torch.tensor([0, 1, 1, 1, 3, 3])
    assert shared_codes(real, fake, num_codes=5, count=5) == [(1, 2, 3), (0, 3, 1)]
    assert shared_codes(real, fake, num_codes=5, count=1) == [(1, 2, 3)]
    assert shared_codes(real, fake[4:], num_codes=5, count=5) == []


def test_typical_patches_lie_under_their_features() -> None:
    images = torch.arange(2 * 16 * 16).float().view(2, 1, 16, 16)
    features = torch.full((2, 1, 4, 4), 9.0)
    features[0, 0, 1, 2], features[1, 0, 3, 3] = 0.5, 0.1
    codes = torch.zeros(2, 4, 4).long()
    codes[0, 1, 2] = codes[1, 3, 3] = 1
    found = typical_patches(images, CodedFeatures(features, codes), 1, torch.zeros(1), count=3)
    assert found.shape == (3, 1, 12, 12)  # three cells of 4 pixels
    assert torch.equal(found[0], images[1, :, 4:, 4:])  # the nearer one first; pushed into the image
    assert torch.equal(found[1], images[0, :, 0:12, 4:16])
    assert torch.equal(found[2], torch.ones(1, 12, 12))


def test_coded_features_are_those_of_the_layer() -> None:
    class Pair(nn.Sequential):
        def forward(self, images: Tensor, labels: Tensor) -> Tensor:
            return super().forward(images).sum((1, 2, 3))

    torch.manual_seed(0)
    conv, layer = nn.Conv2d(1, 3, 3, 2, 1), FeatureQuantizer(3, 5, mode="regularize")
    model = Pair(conv, layer, nn.Conv2d(3, 1, 1))
    images, labels = torch.randn(7, 1, 8, 8), torch.zeros(7).long()
    model(images, labels)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    coded = code_features(model, layer, images, labels)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(coded.features, conv(images).detach())
    rows = coded.features.movedim(1, -1).reshape(-1, 3)
    assert torch.equal(coded.codes.flatten(), torch.cdist(rows, layer.codebook).argmin(1))


def test_codebook_pictures(finished: Path, tmp_path: Path) -> None:
    run = load_run(finished)
    found = codebook_pictures(run, block=1, images=30, codes=3, patches=2, seed=0, folder=tmp_path)
    assert found.codes
    assert all(min(shared.real, shared.fake) > 0 for shared in found.codes)
    side = 12  # block 1 sees maps of 4x4 of 16 pixels
    cell = side * (64 // side) + 4
    assert picture_size(found.patches) == (4 * cell + 4, 16 + len(found.codes) * cell + 4)
    assert picture_size(found.meeting)[0] > 400
    with pytest.raises(ConfigError, match="block 7 has no dictionary; those with one: 0, 1, 2"):
        codebook_pictures(run, block=7, images=30, codes=3, patches=2, seed=0, folder=tmp_path)
