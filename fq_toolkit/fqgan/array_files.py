"""Images in single files: IDX (MNIST and its relatives) and numpy's npz."""

import gzip
import math
import re
import zipfile
import zlib
from pathlib import Path

import numpy as np

from fq_toolkit.fqgan.cifar_files import LabelledBytes
from fq_toolkit.training.errors import ConfigError

_IDX_NAME = re.compile(r"(?P<part>.*?)images[-.]idx3-ubyte(?P<gz>\.gz)?")
IMAGE_KEYS = ("train_images", "images", "x_train", "x", "data", "arr_0")
LABEL_KEYS = ("train_labels", "labels", "y_train", "y", "label", "arr_1")


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of bytes, packed with gzip or not -> uint8 of the shape that its header says.

    Raises:
        ConfigError: when it cannot be read, is cut short or holds something else.

    Source: the format is described on the page of the MNIST database (LeCun, Cortes and Burges).
    """
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(
            f"cannot read {path}: {error or type(error).__name__}; it may be cut short"
        ) from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != 8 or not 1 <= data[3] <= 4:
        raise ConfigError(f"{path} is no IDX file of bytes: it begins with {data[:4].hex(' ')}")
    head = 4 + 4 * data[3]
    shape = tuple(np.frombuffer(data[4:head], dtype=">u4").tolist()) if len(data) >= head else ()
    if len(data) < head or len(data) - head != math.prod(shape):
        raise ConfigError(
            f"{path} should hold {' x '.join(map(str, shape))} bytes and holds {max(0, len(data) - head)}: "
            "it is cut short or has something after its end"
        )
    return np.frombuffer(data, dtype=np.uint8, offset=head).reshape(shape)


def find_idx(folder: Path) -> Path | None:
    """Return the IDX file of images in a folder, that of the training set before any other; or None."""
    files = sorted(path for path in folder.iterdir() if _IDX_NAME.fullmatch(path.name))
    return next((path for path in files if path.name.startswith("train")), files[0] if files else None)


def is_idx(path: Path) -> bool:
    """Return whether a file is named as IDX images are."""
    return _IDX_NAME.fullmatch(path.name) is not None


def read_idx_dataset(path: Path) -> LabelledBytes:
    """Read IDX images with the labels that lie beside them.

    Raises:
        ConfigError: when a file is missing or damaged, or the two do not belong together.
    """
    images = read_idx(path)
    if images.ndim != 3:
        raise ConfigError(f"{path} holds an array of {images.ndim} dimensions; expected images (n, H, W)")
    name = _IDX_NAME.fullmatch(path.name)
    part = name["part"] if name else ""
    names = [f"{part}labels{dot}idx1-ubyte{end}" for dot in "-." for end in ("", ".gz")]
    beside = next((path.parent / n for n in names if (path.parent / n).is_file()), None)
    if beside is None:
        raise ConfigError(f"{path} has no labels beside it; expected {names[0]} or {names[1]}")
    labels = read_idx(beside).astype(np.int64)
    if labels.shape != (len(images),):
        raise ConfigError(
            f"{path} has {len(images)} images, {beside.name} has labels of shape {labels.shape}"
        )
    return LabelledBytes(images[:, None], labels, int(labels.max(initial=0)) + 1, f"IDX ({path.name})")


def read_npz(path: Path) -> LabelledBytes:
    """Read an npz of images, and labels if it has some.

    Images are (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels, uint8, or floats in [0, 1] or
    [-1, 1]. Pickled objects in the file are never loaded.

    Raises:
        ConfigError: naming what the file has and what was expected.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            image_key = next((key for key in IMAGE_KEYS if key in file.files), None)
            label_key = next((key for key in LABEL_KEYS if key in file.files), None)
            if image_key is None:
                raise ConfigError(
                    f"{path} has the arrays {', '.join(file.files)}; expected one of {', '.join(IMAGE_KEYS)}"
                )
            images = _channels_first(file[image_key], path)
            labels = file[label_key] if label_key else np.zeros(len(images), np.int64)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    images = _to_bytes(images, path)
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise ConfigError(
            f"{path}: labels are {labels.dtype} {labels.shape}; expected integers ({len(images)},)"
        )
    if labels.min(initial=0) < 0:
        raise ConfigError(f"{path} has the label {labels.min()}; expected 0 or more")
    found = f"npz ({path.name}: {image_key}{', ' + label_key if label_key else ', no labels'})"
    return LabelledBytes(images, labels.astype(np.int64), int(labels.max(initial=0)) + 1, found)


def _channels_first(images: np.ndarray, path: Path) -> np.ndarray:
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[1] in (1, 3):
        return images
    if images.ndim == 4 and images.shape[3] in (1, 3):
        return images.transpose(0, 3, 1, 2)
    raise ConfigError(
        f"{path}: images have shape {images.shape}; expected (N, H, W), (N, H, W, C) or (N, C, H, W)"
    )


def _to_bytes(images: np.ndarray, path: Path) -> np.ndarray:
    if images.dtype == np.uint8:
        return images
    low, high = (float(images.min()), float(images.max())) if images.size else (0.0, 0.0)
    if not np.issubdtype(images.dtype, np.floating) or not -1 <= low <= high <= 1:
        raise ConfigError(
            f"{path}: images are {images.dtype} from {low} to {high}; "
            "expected uint8, or floats in [0, 1] or [-1, 1]"
        )
    unit = images if low >= 0 else (images + 1) / 2
    return np.rint(unit * 255).astype(np.uint8)
