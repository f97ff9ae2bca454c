"""Strips, sweeps, codebook pictures and the commands that make them."""

import csv
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from fq_toolkit import FeatureQuantizer
from fq_toolkit.fqgan.gan import commands
from fq_toolkit.fqgan.gan.codebook import (
    CodedFeatures,
    code_features,
    codebook_pictures,
    shared_codes,
    typical_patches,
)
from fq_toolkit.fqgan.gan.config import FQGANConfig
from fq_toolkit.fqgan.gan.runs import evaluate_truncations, interpolate_run, load_run, sweep_truncation
from fq_toolkit.fqgan.gan.sampling import Sampler, interpolation_strips, slerp
from fq_toolkit.fqgan.gan.training import train
from fq_toolkit.training.errors import ConfigError

pytestmark = pytest.mark.usefixtures("small_and_plain")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: FQGANConfig, small_and_plain: None) -> Path:
    return train(tiny, out=tmp_path_factory.mktemp("runs") / "run").run


@given(seed=st.integers(0, 10**6), dim=st.integers(2, 20), t=st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_slerp_follows_great_circles(seed: int, dim: int, t: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (
        nn.functional.normalize(torch.randn(3, dim, generator=generator, dtype=torch.float64), dim=1)
        for _ in range(2)
    )
    way = slerp(a, b, torch.tensor([0.0, t, 1.0], dtype=torch.float64))
    torch.testing.assert_close(way[:, 0], a)
    torch.testing.assert_close(way[:, 2], b)
    torch.testing.assert_close(way.norm(dim=2), torch.ones(3, 3, dtype=torch.float64))
    whole, part = (2 * ((a - x).norm(dim=1) / 2).clamp(max=1).asin() for x in (b, way[:, 1]))
    torch.testing.assert_close(part, t * whole, rtol=1e-6, atol=1e-6)


def test_slerp_of_the_same_direction_is_a_line() -> None:
    a = torch.tensor([[1.0, 2.0]])
    way = slerp(a, 3 * a, torch.linspace(0, 1, 3))
    torch.testing.assert_close(way[0], torch.tensor([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]]))


class Styled(nn.Module):
    """A generator with styles, as StyleGAN2 has them: paints its noise, pulled by psi."""

    latent_size, num_classes = 4, 1

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        return self.truncated(z, labels, 1.0)

    def truncated(self, z: Tensor, labels: Tensor, psi: float) -> Tensor:
        return (0.1 * psi * z * self.weight).view(-1, 1, 2, 2)


def test_truncation_pulls_styles_where_there_are_styles() -> None:
    torch.manual_seed(0)
    whole = Sampler(Styled())(torch.zeros(5).long())
    torch.manual_seed(0)
    pulled = Sampler(Styled(), truncation=0.5)(torch.zeros(5).long())
    torch.testing.assert_close(pulled, whole / 2)
    strips = interpolation_strips(Sampler(Styled()), torch.zeros(2).long(), steps=3)
    assert strips.shape == (6, 1, 2, 2)
    torch.manual_seed(1)
    ends = Sampler(Styled()).noise(2)
    torch.manual_seed(1)
    again = interpolation_strips(Sampler(Styled()), torch.zeros(2).long(), steps=3)
    torch.testing.assert_close(again[[0, 3]].flatten(1), 0.1 * ends)


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_strips_and_sweeps(finished: Path, tmp_path: Path) -> None:
    run = load_run(finished)
    interpolate_run(run, seed=0, rows=3, steps=5, classes=(1, 4), out=tmp_path / "new" / "strips.png")
    assert size(tmp_path / "new" / "strips.png") == (5 * 68 + 4, 3 * 68 + 4)
    sweep_truncation(run, seed=0, truncations=(0.2, 2.0), classes=(1, 4), out=tmp_path / "sweep.png")
    assert size(tmp_path / "sweep.png") == (2 * 68 + 4, 16 + 2 * 68 + 4)
    with pytest.raises(ConfigError, match="a strip has 1 images; expected at least 2"):
        interpolate_run(run, seed=0, rows=3, steps=1, classes=(), out=tmp_path / "x.png")
    with pytest.raises(ConfigError, match=r"truncation is -1; expected a positive number"):
        sweep_truncation(run, seed=0, truncations=(-1,), classes=(), out=tmp_path / "x.png")
    found = evaluate_truncations(run, (0.5, 2.0), samples=12, extractor="random-cnn")
    with (finished / "truncations.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["truncation"]) for row in rows] == [0.5, 2.0]
    assert [float(row["fid"]) for row in rows] == [figures.fid for figures in found]
    assert {row["extractor"] for row in rows} == {"random-cnn"}


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
    assert size(found.patches) == (4 * cell + 4, 16 + len(found.codes) * cell + 4)
    assert size(found.meeting)[0] > 400
    with pytest.raises(ConfigError, match="block 7 has no dictionary; those with one: 0, 1, 2"):
        codebook_pictures(run, block=7, images=30, codes=3, patches=2, seed=0, folder=tmp_path)


def test_commands(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "a.png")
    assert commands.sample_command(finished, ["--interpolate", "4", "--rows", "2", "--out", out]) == 0
    assert size(tmp_path / "a.png") == (4 * 68 + 4, 2 * 68 + 4)
    assert commands.sample_command(finished, ["--truncation-sweep", "0.3", "1", "--classes", "3"]) == 0
    assert (finished / "sweep-seed0.png").exists()
    with pytest.raises(ConfigError, match="give one"):
        commands.sample_command(finished, ["--truncation-sweep", "0.3", "--interpolate", "3"])
    assert commands.evaluate_command(finished, ["--samples", "12", "--truncations", "0.5"]) == 0
    assert "truncation 0.5: fid[digits-cnn] " in capsys.readouterr().out
    words = ["--block", "0", "--images", "20", "--codes", "2", "--patches", "1", "--out", str(tmp_path)]
    assert commands.codebook_command(finished, words) == 0
    assert "codebook-block0-tsne.png, from the top, real / generated: code " in capsys.readouterr().out
    with pytest.raises(ConfigError, match="codes is 0"):
        commands.codebook_command(finished, ["--codes", "0"])
    with pytest.raises(ConfigError, match="has a trainer of its own: fq-toolkit train ugatit"):
        commands.train_command(["--preset", "u-gat-it"])


@pytest.mark.parametrize("words", [["--samples", "0"], ["--samples", "1"], ["--samples", "-5"]])
def test_a_number_of_samples_that_cannot_be_measured(finished: Path, words: list[str]) -> None:
    for more in ([], ["--truncations", "0.5"]):
        with pytest.raises(ConfigError, match=r"samples is .*; expected at least 2"):
            commands.evaluate_command(finished, words + more)


@pytest.mark.parametrize("seed", [-1, 2**40, 2**70])
def test_any_seed_works_or_is_refused(finished: Path, tmp_path: Path, seed: int) -> None:
    small = ["--block", "0", "--images", "20", "--codes", "1", "--patches", "1", "--seed", str(seed)]
    for command, words in (
        (commands.codebook_command, [*small, "--out", str(tmp_path)]),
        (commands.sample_command, ["--rows", "1", "--seed", str(seed), "--out", str(tmp_path / "a.png")]),
    ):
        if seed < 2**64:
            assert command(finished, words) == 0
        else:
            with pytest.raises(ConfigError, match="at most 64 bits"):
                command(finished, words)


class Counted(nn.Module):
    """A generator whose images are their labels' numbers, and which notes what it is asked for."""

    latent_size = 4

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.norm = nn.BatchNorm2d(1, affine=False)
        self.weight = nn.Parameter(torch.zeros(()))
        self.asked: list[Tensor] = []

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        self.asked.append(labels)
        images = (labels / self.num_classes)[:, None, None, None].expand(-1, 1, 2, 2)
        return self.norm(images) if self.training else images


@pytest.mark.parametrize("num_classes", [1, 10, 100, 1000])
def test_statistics_are_those_of_all_classes(num_classes: int) -> None:
    generator = Counted(num_classes)
    Sampler(generator).recalibrate()
    counts = torch.bincount(torch.cat(generator.asked), minlength=num_classes)
    assert counts.min() == counts.max() == 2000 // num_classes
    mean = torch.arange(num_classes).float().mean() / num_classes
    torch.testing.assert_close(generator.norm.running_mean, mean.view(1))


def test_many_images_are_made_in_parts() -> None:
    generator = Counted(1000)
    labels = torch.arange(1000).flip(0)
    images = Sampler(generator.eval())(labels)
    assert torch.equal(images[:, 0, 0, 0], labels / 1000)
    assert max(len(part) for part in generator.asked) <= 250


def test_titles_of_columns_are_class_names(finished: Path) -> None:
    from fq_toolkit.fqgan.gan.runs import class_titles

    run = load_run(finished)
    assert class_titles(run, [3, 7]) == ["3", "7"]
    named = run._replace(data=run.data._replace(class_names=("cat", "a very long name")))
    assert class_titles(named, [0, 1]) == ["cat", "1"]
    assert math.isclose(run.seconds, load_run(finished, checkpoint=4).seconds)
