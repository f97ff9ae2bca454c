"""Image datasets: scikit-learn's digits by name, and everything else by its path."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fq_toolkit.fqgan.data.array_files import find_idx, is_idx, read_idx_dataset, read_npz
from fq_toolkit.fqgan.data.cifar_files import LabelledBytes, find_cifar, read_cifar
from fq_toolkit.fqgan.data.file_bounds import regular_size
from fq_toolkit.fqgan.data.image_files import warn_of_cuts
from fq_toolkit.fqgan.data.image_folders import holds_images, read_image_folder
from fq_toolkit.fqgan.data.pixels import Fit, Images, StoredImages, fingerprint, resize_and_crop
from fq_toolkit.training.config import nearest
from fq_toolkit.training.errors import ConfigError, require
from fq_toolkit.training.storage.measured_data import MeasuredSet

log = logging.getLogger("fq_toolkit")


class ImageDataset(NamedTuple):
    """Labelled images.

    images: (N, C, H, W) in [-1, 1]: a float32 tensor, or bytes that become one when looked at.
    labels: int64 (N,) in [0, num_classes).
    extractor: name of the feature extractor that evaluation uses for this dataset.
    class_names: what the classes are called; empty where they are numbers.
    found: what the files are, for people; empty for a dataset that is loaded by name.
    annotations: labels that the files have and training does not use; feature extractors learn from them.
    """

    name: str
    images: Images
    labels: Tensor
    num_classes: int
    extractor: str
    class_names: tuple[str, ...] = ()
    found: str = ""
    annotations: Tensor | None = None


def load_digits() -> ImageDataset:
    """Load the 1,797 handwritten digits of scikit-learn, enlarged from 8x8 to 16x16.

    Source: UCI "Optical Recognition of Handwritten Digits" test set.

    Raises:
        MissingExtraError: without scikit-learn.
    """
    raw = require("sklearn.datasets", purpose="the digits dataset").load_digits()
    images = torch.from_numpy(raw.images).float().unsqueeze(1) / 16  # 0..16 -> 0..1
    # Twice the size, so that the networks have more than one block to be quantized.
    images = functional.interpolate(images, size=(16, 16), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(raw.target).long()
    return ImageDataset("digits", images * 2 - 1, labels, 10, "digits-cnn")


def real_images(source: str, data: ImageDataset) -> dict[str, MeasuredSet]:
    """Return what a GAN is measured on: the images that it is trained on."""
    digest = fingerprint([data.images], data.labels, data.class_names)
    return {"images": MeasuredSet(source, digest, len(data.images))}


DATASETS: dict[str, Callable[[], ImageDataset]] = {"digits": load_digits}


def load_dataset(
    source: str,
    *,
    size: int = 0,
    conditional: bool = True,
    fit: "Fit | Literal['auto']" = "auto",
    skip_damaged: bool = False,
    nested: bool = False,
) -> ImageDataset:
    """Load a dataset by name, or from files whose format is recognized.

    Args:
        source: a name, or a path: a CIFAR-10 or CIFAR-100 folder (python or binary), IDX files (MNIST) or
            their folder, an npz file, an image folder, or a zip archive of one.
        size: pixels of a side; 0 leaves images as they are.
        conditional: use the labels; False makes one class of everything.
        fit: what becomes of images that are not square: ``"crop"`` scales the shorter side and cuts out the
            middle, ``"resize"`` scales both sides, ``"auto"`` crops and warns.
        skip_damaged: leave out pictures that cannot be read, count and name them in the log.
        nested: take all pictures below a folder, however deep, and no classes.

    Raises:
        ConfigError: for an unknown name (with the nearest known one), or files that cannot be used.
    """
    if source in DATASETS:
        data = DATASETS[source]()
        if size not in (0, data.images.shape[2]):
            data = data._replace(images=_resized(data.images[:], size), extractor="data-cnn")
    else:
        data = _load_path(as_path(source), _ReadOptions(size, fit, skip_damaged, nested))
    if len(data.images) == 0:
        raise ConfigError(f"{source} holds no images")
    if conditional:
        return data
    return data._replace(
        labels=torch.zeros_like(data.labels), num_classes=1, class_names=(), annotations=data.labels
    )


class _ReadOptions(NamedTuple):
    """How pictures are to be read, see `load_dataset`."""

    size: int
    fit: "Fit | Literal['auto']"
    skip_damaged: bool
    nested: bool


def as_path(source: str) -> Path:
    """Return the path that an option names.

    Raises:
        ConfigError: when no file can have this name.
    """
    try:
        path = Path(source).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # names too long, with NUL, or of nobody's home
        raise ConfigError(f"the path {source[:100]!r} cannot be used: {error}") from error
    return path


def _load_path(path: Path, reading: _ReadOptions) -> ImageDataset:
    """Recognize what kind of files a path holds, and read them."""
    if not path.exists():
        raise ConfigError(
            f"unknown dataset {str(path)!r}; {nearest(str(path), list(DATASETS))} Nor is it a file or folder"
        )
    if not path.is_dir():
        return _load_file(path, reading)
    if reading.nested:
        return _load_pictures(path, reading)
    # All formats are looked for: what two of them would read is the user's to decide.
    cifar, idx = find_cifar(path), find_idx(path)
    archives = sorted(below for below in path.iterdir() if below.suffix == ".npz")
    kinds = [
        *(["CIFAR batches"] if cifar else []),
        *([f"IDX files ({idx.name})"] if idx else []),
        *([f"npz files ({archives[0].name})"] if archives else []),
        *(["images"] if holds_images(path) else []),
    ]
    if len(kinds) > 1:
        raise ConfigError(f"{path} holds {' and '.join(kinds)}; give the file or folder that you mean")
    if cifar:
        return _from_bytes(path, read_cifar(*cifar), reading, "cifar-cnn")
    if idx:
        return _load_file(idx, reading)
    if len(archives) > 1:
        raise ConfigError(f"{path} holds {len(archives)} npz files; give one of them")
    if archives:
        return _load_file(archives[0], reading)
    return _load_pictures(path, reading)


def _load_pictures(path: Path, reading: _ReadOptions) -> ImageDataset:
    images, labels, classes, names, kind = read_image_folder(path, **reading._asdict())
    extractor = "data-cnn" if classes > 1 else "random-cnn"
    return ImageDataset(
        path.name, images, labels, classes, extractor, names, _describe(kind, images, classes)
    )


def _load_file(path: Path, reading: _ReadOptions) -> ImageDataset:
    regular_size(path)
    if is_idx(path):
        return _from_bytes(path, read_idx_dataset(path), reading, "data-cnn")
    if path.suffix == ".npz":
        data = read_npz(path)
        # Such arrays are most likely a part of CIFAR-10; the classifier is trained on them in any case.
        cifar = data.images.shape[1:] == (3, 32, 32) and data.num_classes == 10
        return _from_bytes(path, data, reading, "cifar-cnn" if cifar else "data-cnn")
    if path.suffix.lower() == ".zip":
        return _load_pictures(path, reading)
    packed = " It is packed: unpack it first." if path.suffix in (".gz", ".tgz", ".tar") else ""
    raise ConfigError(
        f"{path} is no dataset.{packed} Expected a CIFAR folder, IDX files (…images-idx3-ubyte), an npz "
        "file, or a folder or zip archive of images"
    )


def _from_bytes(path: Path, data: LabelledBytes, reading: _ReadOptions, extractor: str) -> ImageDataset:
    # A single stray label would ask for a network with that many classes.
    if len(data.labels) and data.num_classes > max(100, len(data.labels)):
        raise ConfigError(
            f"{path} has the label {data.num_classes - 1} but {len(data.labels)} images; "
            "labels count the classes from 0 without gaps"
        )
    if 0 in data.images.shape[1:]:
        raise ConfigError(f"{path} holds images of {data.images.shape[2]}x{data.images.shape[3]} pixels")
    pixels = torch.from_numpy(data.images.copy())  # arrays from files may be read-only, which torch warns of
    there = len(set(data.labels.tolist()))
    if 0 < there < data.num_classes:
        log.warning(
            "%s: labels go from 0 to %d, but only %d of them have images; a conditional GAN learns nothing "
            "about the others (labels count the classes from 0 without gaps)",
            *(path, data.num_classes - 1, there),
        )
    if reading.size and len(pixels):
        if reading.fit == "auto" and pixels.shape[2] != pixels.shape[3]:
            warn_of_cuts(len(pixels), len(pixels))
        try:
            pixels = resize_and_crop(
                pixels, reading.size, fit="resize" if reading.fit == "resize" else "crop"
            )
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from error
    if extractor == "cifar-cnn" and pixels.shape[2:] != (32, 32):
        extractor = "data-cnn"
    images, labels = StoredImages.in_memory(pixels), torch.from_numpy(data.labels)
    classes = max(1, data.num_classes)
    extractor = extractor if classes > 1 else "random-cnn"
    description = _describe(data.kind, images, data.num_classes)
    return ImageDataset(path.name, images, labels, classes, extractor, found=description)


def _describe(kind: str, images: StoredImages, classes: int) -> str:
    count, channels, height, width = images.shape
    of = f"{classes} classes" if classes > 1 else "one class"
    return f"{kind}: {count:,} images {channels}x{height}x{width}, {of}"


def _resized(images: Tensor, size: int) -> Tensor:
    return functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
