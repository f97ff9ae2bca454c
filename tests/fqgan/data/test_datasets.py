"""Datasets from files: what is found, what is refused."""

import gzip
import logging
import os
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fq_toolkit.fqgan.data import image_files
from fq_toolkit.fqgan.data.augmentation import jitter, random_crop, random_flip
from fq_toolkit.fqgan.data.cifar_files import read_pickle
from fq_toolkit.fqgan.data.datasets import load_dataset, load_digits
from fq_toolkit.fqgan.data.pixels import StoredImages, resize_and_crop, to_floats
from fq_toolkit.fqgan.data.unpaired import load_unpaired, loading_size
from fq_toolkit.training.errors import ConfigError, RunError
from tests.fqgan.data.image_data import pixels, shared, write_cifar_python, write_idx, write_image


def bytes_of(images: Any) -> np.ndarray:
    return ((images[:] + 1) * 127.5).round().to(torch.uint8).numpy()


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("form", ["python", "binary"])
def test_cifar(tmp_path: Path, classes: int, form: str) -> None:
    folder = tmp_path / ("cifar-10-batches-py" if classes == 10 else "cifar-100-python")
    images = write_cifar_python(folder, classes=classes)
    if form == "binary":
        names = [f"data_batch_{i + 1}.bin" for i in range(5)] if classes == 10 else ["train.bin"]
        for name, part in zip(names, np.split(images, len(names)), strict=True):
            first = 0 if name == "train.bin" else 4 * names.index(name)
            labels = [[(first + j) % 10] if classes == 10 else [7, first + j] for j in range(len(part))]
            records = [bytes(label) + row.tobytes() for label, row in zip(labels, part, strict=True)]
            (tmp_path / name).write_bytes(b"".join(records))
        (tmp_path / "fine_label_names.txt").write_text("")
        for path in folder.iterdir():
            path.unlink()
    data = load_dataset(str(tmp_path))  # the folder above is as good as the folder
    assert data.found.startswith(f"CIFAR-{classes}, {form}: {len(images)} images 3x32x32, {classes} classes")
    assert (data.num_classes, data.extractor) == (classes, "cifar-cnn")
    assert data.labels.tolist() == [i % classes for i in range(len(images))]
    assert np.array_equal(bytes_of(data.images), images)


class Touch:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.target}",))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path: Path, protocol: int) -> None:
    write_cifar_python(tmp_path / "cifar")
    target = tmp_path / "touched"
    batch = {b"data": Touch(target), b"labels": [0]}
    payload = pickle.dumps(batch, protocol=protocol)
    (tmp_path / "cifar" / "data_batch_2").write_bytes(payload)
    with pytest.raises(ConfigError, match=r"data_batch_2 is refused: it asks for (posix|nt)\.system"):
        load_dataset(str(tmp_path / "cifar"))
    assert not target.exists()
    pickle.loads(payload)  # the file does what it is meant to where nobody looks
    assert target.exists()


@pytest.mark.parametrize(
    "payload",
    [
        b"cbuiltins\neval\n(S'1+1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cbuiltins\ngetattr\ntR.",
        b"c_codecs\nencode\n(NtR.",
        b"c_codecs\nencode\n}S'__doc__'\nS'x'\nsb.",
        b"c_codecs\nencode\n(N}S'__defaults__'\nNstb.",
        b"cnumpy\ndtype\n(N}S'__init__'\nNstb.",
        b"\x80\x02\x82\x01.",  # an extension code
        b"P1\n.",  # a persistent id
        b"\x80\x02}q",  # cut short
        b"",
        b"not a pickle",
    ],
)
def test_other_pickles_are_refused(tmp_path: Path, payload: bytes) -> None:
    path = tmp_path / "batch"
    path.write_bytes(payload)
    with pytest.raises(ConfigError, match="nothing of this file was run"):
        read_pickle(path)


@given(st.binary(max_size=60))
@settings(max_examples=150, deadline=None)
def test_no_bytes_get_through_as_anything_but_plain_data(data: bytes) -> None:
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"fq-pickle-{os.getpid()}"
    path.write_bytes(b"\x80\x02" + data)
    with suppress(ConfigError):
        assert isinstance(read_pickle(path), dict)
    path.unlink()


def test_damaged_cifar_files(tmp_path: Path) -> None:
    write_cifar_python(tmp_path)
    batch = {b"data": pixels(0, 2, 3072), b"labels": [3, 10]}
    (tmp_path / "data_batch_3").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(ConfigError, match=r"data_batch_3 has the label 10; expected 0 to 9"):
        load_dataset(str(tmp_path))
    for wrong, message in (
        ({b"data": pixels(0, 2, 3071), b"labels": [3, 1]}, r"shape \(2, 3071\); expected \(n, 3072\)"),
        ({b"data": pixels(0, 2, 3072).astype("f4"), b"labels": [3, 1]}, "array of b?'f4'; expected bytes"),
        ({b"data": pixels(0, 2, 3072), b"labels": [3]}, "2 images and labels of shape"),
        ({b"labels": [3]}, "expected b'data' and b'labels'"),
        ([1], "holds list; expected the dictionary"),
    ):
        (tmp_path / "data_batch_3").write_bytes(pickle.dumps(wrong, protocol=2))
        with pytest.raises(ConfigError, match=message):
            load_dataset(str(tmp_path))
    (tmp_path / "data_batch_3").unlink()
    assert "4 of 5 batches" in load_dataset(str(tmp_path)).found
    binary = tmp_path / "binary"
    binary.mkdir()
    (binary / "data_batch_1.bin").write_bytes(b"\0" * 3072)
    with pytest.raises(ConfigError, match="3072 bytes; expected a multiple of 3073"):
        load_dataset(str(binary))


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx(tmp_path: Path, ending: str) -> None:
    images, labels = pixels(1, 6, 28, 28), np.array([0, 1, 2, 0, 1, 2], np.uint8)
    for part in ("t10k", "train"):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte{ending}", images[: 3 if part == "t10k" else 6])
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte{ending}", labels[: 3 if part == "t10k" else 6])
    data = load_dataset(str(tmp_path))
    assert data.found == f"IDX (train-images-idx3-ubyte{ending}): 6 images 1x28x28, 3 classes"
    assert np.array_equal(bytes_of(data.images)[:, 0], images)
    assert data.labels.tolist() == labels.tolist()
    assert len(load_dataset(str(tmp_path / f"t10k-images-idx3-ubyte{ending}")).images) == 3
    assert load_dataset(str(tmp_path), size=16).images.shape == (6, 1, 16, 16)

    path = tmp_path / f"train-images-idx3-ubyte{ending}"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ConfigError, match=r"train-images.*cut short"):
        load_dataset(str(tmp_path))
    write_idx(path, images[:5])
    with pytest.raises(ConfigError, match=r"5 images, train-labels.* has labels of shape"):
        load_dataset(str(tmp_path))
    (tmp_path / f"train-labels-idx1-ubyte{ending}").unlink()
    with pytest.raises(ConfigError, match="has no labels beside it; expected train-labels-idx1-ubyte"):
        load_dataset(str(tmp_path))
    path.write_bytes(gzip.compress(b"\0\0\x0d\x03") if ending else b"\0\0\x0d\x03")
    with pytest.raises(ConfigError, match="no IDX file of bytes: it begins with 00 00 0d 03"):
        load_dataset(str(path))


def test_npz_in_every_layout(tmp_path: Path) -> None:
    images = pixels(2, 5, 3, 8, 8)
    forms = {
        "first": images,
        "last": images.transpose(0, 2, 3, 1),
        "unit": images.astype(np.float32) / 255,
        "signed": images.astype(np.float64) / 127.5 - 1,
    }
    for name, form in forms.items():
        np.savez(tmp_path / f"{name}.npz", x=form, y=np.array([0, 1, 1, 0, 2]))
        data = load_dataset(str(tmp_path / f"{name}.npz"))
        assert np.array_equal(bytes_of(data.images), images), name
        assert data.num_classes == 3
        assert data.found == f"npz ({name}.npz: x, y): 5 images 3x8x8, 3 classes"
    np.savez(tmp_path / "plain.npz", images[:, 0])
    data = load_dataset(str(tmp_path / "plain.npz"))
    assert (data.images.shape, data.num_classes, data.extractor) == ((5, 1, 8, 8), 1, "random-cnn")
    loose = load_dataset(str(tmp_path / "first.npz"), conditional=False)
    assert (loose.num_classes, loose.labels.unique().tolist(), loose.extractor) == (1, [0], "data-cnn")
    assert loose.annotations is not None
    assert loose.annotations.tolist() == [0, 1, 1, 0, 2]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": np.zeros((2, 8, 8), np.uint8)}, "has the arrays pictures; expected one of"),
        ({"x": np.zeros((2, 8, 8, 5), np.uint8)}, r"shape \(2, 8, 8, 5\); expected"),
        ({"x": np.full((2, 8, 8), 7.0)}, "float64 from 7.0 to 7.0; expected uint8, or floats"),
        ({"x": np.full((2, 8, 8), np.nan)}, "from nan to nan"),
        ({"x": np.zeros((2, 8, 8), np.uint8), "y": np.array([0, -1])}, "label -1; expected 0 or more"),
        ({"x": np.zeros((2, 8, 8), np.uint8), "y": np.array([0, 900])}, "label 900 but 2 images"),
        ({"x": np.zeros((2, 8, 8), np.uint8), "y": np.array([0.5, 1])}, "labels are float64"),
        ({"x": np.array([{}], dtype=object)}, "Object arrays cannot be loaded"),
        ({"x": np.zeros((0, 8, 8), np.uint8)}, "holds no images"),
    ],
)
def test_npz_that_does_not_fit(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(ConfigError, match=message):
        load_dataset(str(tmp_path / "data.npz"))


def test_image_folder(tmp_path: Path) -> None:
    drawn = {}
    for name in ("class10", "class2"):
        for i in (10, 9):
            drawn[name, i] = write_image(tmp_path / name / f"{i}.png", seed=i + len(name))
    (tmp_path / "class2" / ".hidden.png").write_text("no picture")
    (tmp_path / "class2" / "notes.txt").write_text("no picture")
    data = load_dataset(str(tmp_path))
    assert data.class_names == ("class2", "class10")
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert data.found == "image folder: 4 images 3x8x8, 2 classes"
    order = [("class2", 9), ("class2", 10), ("class10", 9), ("class10", 10)]
    expected = np.stack([drawn[key].transpose(2, 0, 1) for key in order])
    assert np.array_equal(bytes_of(data.images), expected)


def test_folders_that_may_be_meant_otherwise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_image(tmp_path / "all" / "a.png")
    data = load_dataset(str(tmp_path / "all"))
    assert (data.num_classes, data.class_names, data.extractor) == (1, (), "random-cnn")
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert load_dataset(str(tmp_path)).class_names == ("all",)
    assert "has a single class, all" in caplog.text
    write_image(tmp_path / "deep" / "train" / "cat" / "a.png")
    with pytest.raises(ConfigError, match=r"holds no images, .* did you mean .*deep.train\?"):
        load_dataset(str(tmp_path / "deep"))
    write_image(tmp_path / "train" / "cat" / "a.png")
    with caplog.at_level(logging.WARNING):
        load_dataset(str(tmp_path))
    assert "the folders in train are not looked into" in caplog.text
    write_image(tmp_path / "loose.png")
    with caplog.at_level(logging.WARNING):
        load_dataset(str(tmp_path))
    assert "1 images beside the folders of the classes are not used" in caplog.text


def test_broken_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(3):
        write_image(tmp_path / "a" / f"{i}.png", (32, 32), seed=i)
    whole = (tmp_path / "a" / "1.png").read_bytes()
    (tmp_path / "a" / "1.png").write_bytes(whole[: len(whole) // 2])  # its head is intact
    with pytest.raises(ConfigError, match=r"1 image\(s\) cannot be read.*\n.*a.1\.png"):
        load_dataset(str(tmp_path / "a"))
    (tmp_path / "a" / "2.png").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"a.2\.png: UnidentifiedImageError"):
        load_dataset(str(tmp_path / "a"))
    (tmp_path / "a" / "2.png").unlink()
    monkeypatch.setattr(image_files, "MEMORY_LIMIT", 0)
    stored = load_dataset(str(tmp_path / "a")).images
    assert torch.equal(stored[0], stored[torch.tensor([0])][0])
    with pytest.raises(RunError, match=r"cannot read .*1\.png"):
        stored[1]


def test_mixed_sizes_and_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(20, 12), (12, 16), (9, 8)]
    for i, (mode, size) in enumerate(zip(("RGB", "L", "P"), sizes, strict=True)):
        write_image(tmp_path / f"{i}.png", size, mode, seed=i)
    with pytest.raises(ConfigError, match=r"0\.png is 20x12, .*1\.png is 12x16. Give --image-size"):
        load_dataset(str(tmp_path))
    data = load_dataset(str(tmp_path), size=8)
    assert data.images.shape == (3, 3, 8, 8)
    gray = data.images[1]
    assert torch.equal(gray[0], gray[1])
    monkeypatch.setattr(image_files, "MEMORY_LIMIT", 0)  # from disk, the same
    assert torch.equal(load_dataset(str(tmp_path), size=8).images[:], data.images[:])
    (tmp_path / "0.png").unlink()
    (tmp_path / "2.png").unlink()
    assert load_dataset(str(tmp_path)).images.shape == (1, 1, 16, 12)


def test_transparent_deep_and_turned_pictures(tmp_path: Path) -> None:
    clear = np.zeros((4, 4, 4), np.uint8)
    clear[:2] = (10, 20, 30, 255)
    Image.fromarray(clear, "RGBA").save(tmp_path / "clear.png")
    read = image_files.read_image(tmp_path / "clear.png", channels=3)
    assert read[:, 0, 0].tolist() == [10, 20, 30]
    assert read[:, 3, 3].tolist() == [255, 255, 255]
    Image.fromarray((np.arange(16, dtype=np.uint16) * 4096).reshape(4, 4)).save(tmp_path / "deep.png")
    deep = image_files.read_image(tmp_path / "deep.png", channels=1)
    assert deep.flatten().tolist() == list(range(0, 256, 16))
    turned = Image.new("RGB", (6, 3))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    folder = tmp_path / "turned"
    folder.mkdir()
    (tmp_path / "turned.jpg").rename(folder / "turned.jpg")
    assert load_dataset(str(folder)).images.shape == (1, 3, 6, 3)


def test_a_path_that_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown dataset 'digit'; did you mean 'digits'"):
        load_dataset("digit")
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"")
    with pytest.raises(ConfigError, match="It is packed: unpack it first"):
        load_dataset(str(tmp_path / "cifar-10-python.tar.gz"))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match="holds no images, and no folders of images"):
        load_dataset(str(empty))
    write_cifar_python(empty)
    np.savez(empty / "a.npz", x=pixels(0, 1, 8, 8))
    with pytest.raises(ConfigError, match=r"holds CIFAR batches and npz files \(a.npz\); give the"):
        load_dataset(str(empty))


def test_unpaired_folders(tmp_path: Path) -> None:
    for part, count in (("trainA", 3), ("trainB", 2), ("testA", 1)):
        for i in range(count):
            write_image(tmp_path / part / f"{i}.png", (20 + i, 18), seed=i)
    data = load_unpaired(str(tmp_path), size=16)
    assert [len(part) for part in data[1:5]] == [3, 2, 1, 2]  # type: ignore[arg-type]
    assert data.train_a.shape[2:] == (18, 18) == (loading_size(16),) * 2
    assert data.test_b.shape[2:] == (16, 16)
    assert "no testB: tested on the training images" in data.found
    with pytest.raises(ConfigError, match="they are for: fq-toolkit train ugatit"):
        load_dataset(str(tmp_path))
    with pytest.raises(ConfigError, match="has the folders none; expected trainA and trainB"):
        load_unpaired(str(tmp_path / "trainA"), size=16)
    write_image(tmp_path / "testB" / "0.png", mode="L")
    with pytest.raises(ConfigError, match="gray images only"):
        load_unpaired(str(tmp_path), size=16)
    digits = load_unpaired("digits", size=16)
    assert digits.train_a[:].mean() < -0.2 < 0.2 < digits.train_b[:].mean()


@given(seed=st.integers(0, 100), size=st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_random_flips_and_crops(seed: int, size: int) -> None:
    torch.manual_seed(seed)
    images = torch.arange(64 * 6 * 7).view(64, 1, 6, 7).float()
    flipped = random_flip(images)
    mirrored = (flipped != images).flatten(1).any(1)
    assert torch.equal(flipped[mirrored], images[mirrored].flip(3))
    assert 8 < int(mirrored.sum()) < 56
    cropped = random_crop(images, size)
    tops, lefts = [], []
    for image, crop in zip(images, cropped, strict=True):
        top, left = divmod(int(crop[0, 0, 0] - image.min()), 7)
        tops.append(top)
        lefts.append(left)
        assert torch.equal(crop, image[:, top : top + size, left : left + size])
    assert set(tops) == set(range(6 - size + 1))
    assert set(lefts) == set(range(7 - size + 1))
    assert jitter(images, size).shape == (64, 1, size, size)
    with pytest.raises(ValueError, match="cannot cut 7x7 pixels out of images of 6x7"):
        random_crop(images, 7)


def test_stored_images_stand_for_a_tensor() -> None:
    raw = torch.from_numpy(pixels(3, 7, 3, 4, 5))
    floats, stored = to_floats(raw), StoredImages.in_memory(raw)
    assert (stored.shape, len(stored)) == (floats.shape, 7)
    rows = torch.tensor([3, 0, 3])
    for take in (rows, slice(2, None, 2), 4):
        assert torch.equal(stored[take], floats[take])
    assert all(map(torch.equal, stored.split(3), floats.split(3)))
    assert stored.to("meta")[rows].device.type == "meta"
    assert floats.min() >= -1
    assert floats.max() <= 1


@given(height=st.integers(3, 20), width=st.integers(3, 20), size=st.integers(2, 24))
@settings(max_examples=30, deadline=None)
def test_resizing_keeps_the_middle(height: int, width: int, size: int) -> None:
    flat = torch.full((2, 1, height, width), 77, dtype=torch.uint8)
    assert torch.equal(resize_and_crop(flat, size), torch.full((2, 1, size, size), 77, dtype=torch.uint8))
    side = min(height, width)
    ramp = torch.arange(height * width).view(1, 1, height, width).to(torch.uint8)
    top, left = (height - side) // 2, (width - side) // 2
    assert torch.equal(resize_and_crop(ramp, side), ramp[:, :, top : top + side, left : left + side])


def test_the_shared_files() -> None:
    cifar = load_dataset(str(shared("cifar10_subset.npz")))
    assert cifar.found == (
        "npz (cifar10_subset.npz: train_images, train_labels): 5,085 images 3x32x32, 10 classes"
    )
    assert cifar.extractor == "cifar-cnn"
    mnist = load_dataset(str(shared("t10k-images-idx3-ubyte.gz")), size=32)
    assert mnist.images.shape == (10_000, 1, 32, 32)
    assert mnist.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pictures_of_numbers_are_refused_and_not_black(tmp_path: Path, dtype: type) -> None:
    numbers = np.linspace(0, 1 if dtype is np.float32 else 255, 64).reshape(8, 8).astype(dtype)
    Image.fromarray(numbers).save(tmp_path / "0.tif")
    with pytest.raises(ConfigError, match=r"0\.tif: ValueError: 32-bit numbers"):
        load_dataset(str(tmp_path))


def test_deep_gray_with_a_transparent_level_keeps_its_levels(tmp_path: Path) -> None:
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    Image.fromarray(deep).save(tmp_path / "0.png", transparency=5000)
    expected = np.where(deep == 5000, 255, deep >> 8)
    assert np.array_equal(bytes_of(load_dataset(str(tmp_path)).images)[0, 0], expected)


def test_gray_with_alpha_is_gray(tmp_path: Path) -> None:
    rgb = write_image(tmp_path / "0.png", mode="LA")
    assert np.array_equal(
        bytes_of(load_dataset(str(tmp_path)).images)[0, 0], np.array(Image.fromarray(rgb).convert("L"))
    )


def test_any_name_can_be_sorted(tmp_path: Path) -> None:
    for name in ("10²", "²", "٣", "½", "Ⅷ3"):
        write_image(tmp_path / name / "²³1²¹.png")
    assert load_dataset(str(tmp_path)).num_classes == 5


@pytest.mark.parametrize("shape", [(), (5,), (5, 0, 0), (5, 8, 0), (5, 0, 8, 3)])
@pytest.mark.parametrize("size", [0, 8])
def test_arrays_without_pixels_are_refused(tmp_path: Path, shape: tuple[int, ...], size: int) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros(shape, np.uint8))
    with pytest.raises(ConfigError, match=r"a\.npz"):
        load_dataset(str(tmp_path / "a.npz"), size=size)


def test_labels_with_gaps_are_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = np.zeros((4, 8, 8), np.uint8)
    np.savez(tmp_path / "from0.npz", x=images, y=[0, 1, 2, 1])
    np.savez(tmp_path / "from1.npz", x=images, y=[1, 2, 3, 1])
    load_dataset(str(tmp_path / "from0.npz"))
    assert not caplog.records
    load_dataset(str(tmp_path / "from1.npz"))
    assert "labels go from 0 to 3, but only 3 of them have images" in caplog.text


def test_digits() -> None:
    data = load_digits()
    assert data.images.shape == (1797, 1, 16, 16)
    assert (float(data.images.min()), float(data.images.max())) == (-1, 1)
    assert data.labels.bincount().min() > 170
    assert load_dataset("digits").name == "digits"
    with pytest.raises(ConfigError, match="unknown dataset 'digit'; did you mean 'digits'"):
        load_dataset("digit")
