"""Extractor and its cache, sampler, grids, evaluation."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from fq_toolkit.fqgan.data.datasets import load_digits
from fq_toolkit.fqgan.gan.evaluation import Evaluator
from fq_toolkit.fqgan.gan.sampling import Sampler, class_columns, save_grid, to_bytes
from fq_toolkit.fqgan.metrics import extractors
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.seeding import isolated_rng


class Painter(nn.Module):
    """A generator that paints real digits: as good as one can get."""

    latent_size, num_classes = 2, 10

    def __init__(self) -> None:
        super().__init__()
        self.data = load_digits()
        self.weight = nn.Parameter(torch.zeros(()))
        self.norm = nn.BatchNorm1d(2)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        self.norm(z)
        rows = [torch.nonzero(self.data.labels == label).flatten() for label in labels]
        picked = [r[int(torch.randint(len(r), ()))] for r in rows]
        return self.data.images[torch.stack(picked)] + self.weight


def test_the_extractor_knows_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extractors, "EPOCHS", 4)
    model = extractors.digits_cnn(load_digits(), cache=False)
    assert model.holdout_accuracy > 0.95
    assert not model.training
    assert model(torch.zeros(3, 1, 16, 16)).features.shape == (3, model.dim)


def test_the_cache_is_used_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(extractors, "cache_folder", lambda: tmp_path / "new")
    data = load_digits()
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    first = extractors.digits_cnn(data)
    assert torch.equal(torch.randn(2), expected)  # training it did not touch the random state
    calls = []
    train = extractors._train
    monkeypatch.setattr(extractors, "_train", lambda *args: calls.append(1) or train(*args))
    torch.manual_seed(3)
    second = extractors.digits_cnn(data)
    assert torch.equal(torch.randn(2), expected)  # nor did loading it
    assert not calls
    assert second.holdout_accuracy == first.holdout_accuracy
    assert torch.equal(first.head[4].weight, second.head[4].weight)
    (weights,) = (tmp_path / "new").glob("*.safetensors")
    for content in (b"", weights.read_bytes()[:-5]):
        weights.write_bytes(content)
        with caplog.at_level(logging.WARNING):
            third = extractors.digits_cnn(data)
        assert "damaged" in caplog.text
        assert torch.equal(first.head[4].weight, third.head[4].weight)  # training is seeded
    assert len(calls) == 2


def test_a_cache_that_cannot_be_written_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(extractors, "cache_folder", lambda: tmp_path / "file" / "cache")
    assert extractors.digits_cnn(load_digits()).holdout_accuracy > 0
    assert "is not cached" in caplog.text


def test_an_unknown_extractor() -> None:
    with pytest.raises(ConfigError, match="unknown feature extractor 'digit-cnn'; did you mean 'digits-cnn'"):
        extractors.load_extractor("digit-cnn", load_digits())


def test_real_digits_measure_like_real_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_digits()
    extractor = extractors.digits_cnn(data)
    evaluator = Evaluator(data, extractor, Accelerator(cpu=True))
    with torch.no_grad():
        truth = extractor(data.images).logits.argmax(1) == data.labels
    torch.manual_seed(4)
    expected = torch.randn(2)
    torch.manual_seed(4)
    good = evaluator(Sampler(Painter()), samples=600)
    assert torch.equal(torch.randn(2), expected)  # measuring does not touch the random state
    assert good.fid < 3 * good.floor
    assert good.accuracy == pytest.approx(float(truth.double().mean()), abs=0.06)
    bad_painter = Painter()
    with torch.no_grad():
        bad_painter.weight.fill_(0.7)
    bad = evaluator(Sampler(bad_painter), samples=600)
    assert bad.fid > 3 * good.fid
    assert str(good).startswith(
        f"fid[digits-cnn] {good.fid:.2f} (n=600, real-vs-real floor {good.floor:.2f})"
    )


def test_sampler_repeats_and_truncates() -> None:
    sampler = Sampler(Painter(), truncation=0.5)
    noise = sampler.noise(1000)
    assert noise.abs().max() <= 0.5
    assert noise.std() > 0.2
    assert Sampler(Painter()).noise(1000).abs().max() > 2
    for wrong in (0.0, -1.0):
        with pytest.raises(ValueError, match="expected a positive number"):
            Sampler(Painter(), truncation=wrong)
    with isolated_rng(1):
        a = class_columns(sampler, [3, 7], 4)
    with isolated_rng(1):
        b = class_columns(sampler, [3, 7], 4)
    assert torch.equal(a, b)
    assert a.shape == (8, 1, 16, 16)


def test_pixels() -> None:
    image = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0]).view(1, 1, 1, 5)
    assert to_bytes(image).flatten().tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_has_one_column_a_class(tmp_path: Path, channels: int) -> None:
    levels = torch.linspace(-1, 1, 6)  # rows of [a, b, c], [d, e, f]
    images = levels.view(6, 1, 1, 1).expand(6, channels, 16, 16)
    save_grid(images, tmp_path / "grid.png", columns=3, titles=["a", "b", "c"])
    picture = np.asarray(Image.open(tmp_path / "grid.png").convert("L"))
    assert picture.shape == (16 + 2 * 68 + 4, 3 * 68 + 4)
    centers = [[picture[16 + 36 + 68 * r, 36 + 68 * c] for c in range(3)] for r in range(2)]
    assert centers == [[0, 51, 102], [153, 204, 255]]


def test_grid_refuses_what_it_cannot_draw(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected \(n, 1 or 3, H, W\)"):
        save_grid(torch.zeros(1, 2, 4, 4), tmp_path / "x.png", columns=1)
    with pytest.raises(ValueError, match="1 titles for 2 columns"):
        save_grid(torch.zeros(2, 1, 4, 4), tmp_path / "x.png", columns=2, titles=["a"])
