"""Feature extractors: which one fits, classifiers trained in place, a user's TorchScript file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fq_toolkit.fqgan.data.datasets import ImageDataset, load_dataset, load_digits
from fq_toolkit.fqgan.data.pixels import StoredImages
from fq_toolkit.fqgan.gan.evaluation import Evaluator, evaluation_columns
from fq_toolkit.fqgan.metrics import extractors
from fq_toolkit.fqgan.metrics.extractors import extractor_name, load_extractor
from fq_toolkit.training.errors import ConfigError


def stripes(count: int = 120, size: int = 32, channels: int = 3) -> ImageDataset:
    """Noise with horizontal (0), vertical (1) or no stripes (2): to be told apart in an epoch."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 100, (count, channels, size, size), dtype=np.uint8)
    labels = np.arange(count) % 3
    pixels[labels == 0, :, ::4] += 150
    pixels[labels == 1, :, :, ::4] += 150
    images = StoredImages.in_memory(torch.from_numpy(pixels))
    return ImageDataset("stripes", images, torch.from_numpy(labels), 3, "cifar-cnn")


class Replay(nn.Module):
    """A generator that paints what it was given, in turn."""

    latent_size, num_classes = 1, 3

    def __init__(self, data: ImageDataset) -> None:
        super().__init__()
        self.data, self.position = data, 0

    def __call__(self, labels: Tensor) -> Tensor:
        images = self.data.images[self.position : self.position + len(labels)]
        self.position += len(labels)
        return images


def test_cifar_cnn_is_trained_in_place_and_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extractors, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(extractors, "EPOCHS", 4)
    monkeypatch.setattr(extractors, "_BATCH", 16)
    data = stripes()
    model = load_extractor("auto", data)
    assert model.name == "cifar-cnn"
    assert model.holdout_accuracy is not None
    assert model.holdout_accuracy > 0.9
    (weights,) = tmp_path.glob("cifar-cnn-*.safetensors")
    monkeypatch.setattr(extractors, "_train", lambda *_: pytest.fail("trained again"))
    again = load_extractor("cifar-cnn", data)
    assert torch.equal(again(data.images[:3]).features, model(data.images[:3]).features)
    # Labels that training does not use are still there to learn the ruler from.
    loose = data._replace(labels=torch.zeros(120).long(), num_classes=1, annotations=data.labels)
    assert load_extractor("cifar-cnn", loose).holdout_accuracy == model.holdout_accuracy
    weights.write_bytes(b"")
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        load_extractor("cifar-cnn", data)

    evaluator = Evaluator(data, model, Accelerator(cpu=True))
    found = evaluator(Replay(data), samples=120)  # type: ignore[arg-type]
    assert found.fid == pytest.approx(0, abs=1e-6)
    assert (found.precision, found.recall, found.real_images) == (1, 1, 120)
    assert found.inception_score == pytest.approx(found.real_inception_score, rel=1e-9)
    assert found.accuracy is not None
    assert found.accuracy > 0.9
    assert list(found.columns()) == evaluation_columns(model, data)
    assert "kid[cifar-cnn] " in str(found)
    assert "is[cifar-cnn] " in str(found)
    assert "fid " not in str(found).lower()


def test_random_cnn_is_the_same_everywhere() -> None:
    data = stripes(40, 16, 1)._replace(num_classes=1, labels=torch.zeros(40).long())
    torch.manual_seed(5)
    expected = torch.randn(2)
    torch.manual_seed(5)
    first = load_extractor("random-cnn", data)
    assert torch.equal(torch.randn(2), expected)
    features = first(data.images[:40]).features
    assert torch.equal(features, load_extractor("random-cnn", data)(data.images[:40]).features)
    assert (features.std(0) > 0).float().mean() > 0.5
    found = Evaluator(data, first, Accelerator(cpu=True))(Replay(data), samples=40)  # type: ignore[arg-type]
    assert (found.accuracy, found.inception_score, found.holdout_accuracy) == (None, None, None)
    assert list(found.columns()) == evaluation_columns(first, data)
    assert str(found).startswith("fid[random-cnn] 0.00 (n=40, real-vs-real floor ")


@pytest.mark.parametrize("size", [8, 16, 64])
def test_data_cnn_takes_any_size(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extractors, "EPOCHS", 1)
    data = stripes(30, size, 1)
    model = extractors.data_cnn(data, cache=False)
    seen = model(data.images[:2])
    assert seen.features.shape == (2, model.dim)
    assert seen.logits is not None
    assert seen.logits.shape == (2, 3)


class Features(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean(dim=(2, 3)) / 255


class Both(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images.float().mean(dim=(2, 3)), images.float().amax(dim=(2, 3))


class LikeInception(nn.Module):
    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        pooled = images.float().mean(dim=(2, 3))
        return pooled if return_features else (pooled / 100).softmax(1)


class Wrong(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean()


def script(module: nn.Module, path: Path) -> Path:
    torch.jit.script(module).save(str(path))
    return path


def test_a_torchscript_file(tmp_path: Path) -> None:
    data = load_digits()
    plain = load_extractor(f"mine:{script(Features(), tmp_path / 'a.pt')}", data)
    assert (plain.name, plain.dim, plain.holdout_accuracy) == ("mine", 3, None)
    images = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 1, 4, 4)
    seen = plain(images)
    assert seen.logits is None
    torch.testing.assert_close(seen.features, torch.tensor([[0.0], [128 / 255], [1]]).expand(3, 3))
    both = load_extractor(f"both:{script(Both(), tmp_path / 'b.pt')}", data)(images)
    assert both.logits is not None
    assert both.logits[2].tolist() == [255] * 3
    like = load_extractor(f"inception:{script(LikeInception(), tmp_path / 'c.pt')}", data)
    pixels = torch.rand(5, 3, 8, 8) * 2 - 1
    seen = like(pixels)
    assert like.name == "inception"
    assert seen.logits is not None
    expected = (seen.features / 100).softmax(1)
    torch.testing.assert_close(seen.logits.softmax(1), expected)


def test_torchscript_files_that_do_not_fit(tmp_path: Path) -> None:
    data = load_digits()
    with pytest.raises(ConfigError, match=r"absent.pt cannot be loaded as TorchScript: "):
        load_extractor(f"mine:{tmp_path / 'absent.pt'}", data)
    (tmp_path / "text.pt").write_text("text")
    with pytest.raises(ConfigError, match=r"text.pt cannot be loaded as TorchScript: "):
        load_extractor(f"mine:{tmp_path / 'text.pt'}", data)
    with pytest.raises(ConfigError, match=r"returned \(\) for 2 images; expected features"):
        load_extractor(f"mine:{script(Wrong(), tmp_path / 'wrong.pt')}", data)


class Unpooled(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().flatten(1)


class NoRows(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images.float().mean(dim=(2, 3)), images.float().mean(dim=(1, 2, 3))


class Endless(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images.float().mean(dim=(2, 3)), images.float().amax(dim=(2, 3)).log().neg()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Unpooled(), "returned 768 features for .* and 12288 for 64x64 pixels"),
        (NoRows(), r"returned class logits \(2,\) for 2 images"),
        (Endless(), "returned values that are not finite"),
    ],
)
def test_a_torchscript_file_that_returns_what_cannot_be_measured(
    tmp_path: Path, module: nn.Module, message: str
) -> None:
    choice = f"mine:{script(module, tmp_path / 'a.pt')}"
    with pytest.raises(ConfigError, match=message):
        load_extractor(choice, load_digits())(torch.full((4, 1, 16, 16), -1.0))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("digit-cnn", "unknown feature extractor 'digit-cnn'; did you mean 'digits-cnn'"),
        ("inception", "inception needs its weights"),
        ("cifar-cnn", "cifar-cnn looks at images of 3x32x32; those of digits are 1x16x16: use data-cnn"),
        ("cifar-cnn:file.pt", "cifar-cnn is a built-in extractor"),
    ],
)
def test_extractors_that_do_not_fit(choice: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_extractor(choice, load_digits())


def test_a_classifier_needs_classes(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 8, 8), np.uint8))
    data = load_dataset(str(tmp_path / "a.npz"))
    assert extractor_name("auto", data) == "random-cnn"
    assert extractor_name("clip:file.pt", data) == "clip"
    with pytest.raises(
        ConfigError, match=r"learns the classes of its dataset; a.npz has one: use random-cnn"
    ):
        load_extractor("data-cnn", data)
