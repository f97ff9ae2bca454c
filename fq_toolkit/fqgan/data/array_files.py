"""Images in single files: IDX (MNIST and its relatives) and numpy's npz."""

import gzip
import math
import re
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fq_toolkit.fqgan.data.cifar_files import LabelledBytes
from fq_toolkit.fqgan.data.file_bounds import demand_memory, regular_size
from fq_toolkit.training.errors import ConfigError

_IDX_NAME = re.compile(r"(?P<part>.*?)images[-.]idx3-ubyte(?P<gz>\.gz)?")
IMAGE_KEYS = ("train_images", "images", "x_train", "x", "data", "arr_0")
LABEL_KEYS = ("train_labels", "labels", "y_train", "y", "label", "arr_1")
_CHUNK = 2**24  # bytes, or numbers, converted at a time


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of bytes, packed with gzip or not -> uint8 of the shape that its header says.

    The header is checked against the size of the file before anything is read after it.

    Raises:
        ConfigError: when it cannot be read, is cut short or holds something else.

    Source: the page of the MNIST database (LeCun, Cortes and Burges) describes the format.
    """
    stored = regular_size(path)
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if not packed:
                return _read_idx(file, path, stored, packed=False)
            with gzip.open(file) as inner:
                return _read_idx(inner, path, stored, packed=True)  # type: ignore[arg-type]
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(
            f"cannot read {path}: {error or type(error).__name__}; it may be cut short"
        ) from error


def _read_idx(file: BinaryIO, path: Path, stored: int, *, packed: bool) -> np.ndarray:
    # Two zeros, the type (8: unsigned bytes), the number of dimensions, then each as a big-endian uint32.
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] != 8 or not 1 <= start[3] <= 4:
        raise ConfigError(f"{path} is no IDX file of bytes: it begins with {start.hex(' ')}")
    sizes = file.read(4 * start[3])
    shape = tuple(np.frombuffer(sizes, dtype=">u4").tolist()) if len(sizes) == 4 * start[3] else ()
    expected, head = math.prod(shape), 4 + len(sizes)
    held = stored - head  # of a packed file only reading to its end tells
    if packed and shape:
        demand_memory(path, expected, stored=stored)
        data = file.read(expected)
        held = len(data) + len(file.read(1))  # one byte more tells that it goes on
    if not shape or held != expected:
        more = "more" if packed and held > expected else max(0, held)
        raise ConfigError(
            f"{path} should hold {' x '.join(map(str, shape))} bytes and holds {more}: "
            "it is cut short or has something after its end"
        )
    if not packed:
        demand_memory(path, expected, stored=stored)
        data = file.read(expected)
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def find_idx(folder: Path) -> Path | None:
    """Return the IDX file of images in a folder, preferably that of the training set; or None."""
    files = sorted(path for path in folder.iterdir() if _IDX_NAME.fullmatch(path.name))
    return next((path for path in files if path.name.startswith("train")), files[0] if files else None)


def is_idx(path: Path) -> bool:
    """Return whether a file has a name of IDX images."""
    return _IDX_NAME.fullmatch(path.name) is not None


def read_idx_dataset(path: Path) -> LabelledBytes:
    """Read IDX images and the labels beside them.

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
    [-1, 1]. Pickled objects in the file are never loaded, and the header of an array is checked against the
    size of its entry before memory is allocated for it.

    Raises:
        ConfigError: naming what the file has and what was expected.
    """
    regular_size(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            keys = [name.removesuffix(".npy") for name in names if name.endswith(".npy")]
            image_key = next((key for key in IMAGE_KEYS if key in keys), None)
            label_key = next((key for key in LABEL_KEYS if key in keys), None)
            if image_key is None:
                others = f" and other entries ({', '.join(names[:5])})" if len(names) > len(keys) else ""
                raise ConfigError(
                    f"{path} has the arrays {', '.join(keys[:20]) or 'none'}{others}; "
                    f"expected one of {', '.join(IMAGE_KEYS)}"
                )
            if len(set(names)) < len(names):
                raise ConfigError(f"{path} has two arrays of one name")
            images = _channels_first(_read_member(archive, image_key, path), path)
            labels = _read_member(archive, label_key, path) if label_key else np.zeros(len(images), np.int64)
    except ConfigError:
        raise
    except Exception as error:  # a damaged archive may raise anything, down to its compressed streams
        raise ConfigError(f"cannot read {path}: {str(error) or type(error).__name__}") from error
    images = _to_bytes(images, path)
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise ConfigError(
            f"{path}: labels are {labels.dtype} {labels.shape}; expected integers ({len(images)},)"
        )
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    if low < 0:
        raise ConfigError(f"{path} has the label {low}; expected 0 or more")
    if high >= 2**62:  # the number of classes is one more, and has to fit int64
        raise ConfigError(f"{path} has the label {high}; expected the number of a class")
    kind = f"npz ({path.name}: {image_key}{', ' + label_key if label_key else ', no labels'})"
    return LabelledBytes(images, labels.astype(np.int64), high + 1, kind)


def _read_member(archive: zipfile.ZipFile, key: str, path: Path) -> np.ndarray:
    info = archive.getinfo(f"{key}.npy")
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in readers:
            raise ConfigError(f"{path}: {key} is an npy of version {version}; expected 1.0 or 2.0")
        shape, by_column, dtype = readers[version](file)
        if dtype.hasobject:
            raise ConfigError(
                f"{path}: Object arrays cannot be loaded: {key} holds pickled objects, not numbers"
            )
        if dtype.kind not in "uif" or dtype.names is not None or dtype.subdtype is not None:
            raise ConfigError(f"{path}: {key} is an array of {dtype}; expected numbers")
        needed = math.prod(shape) * dtype.itemsize
        if any(side < 0 for side in shape) or needed != info.file_size - file.tell():
            raise ConfigError(
                f"{path}: {key} should hold {dtype} {shape}, and its entry has "
                f"{info.file_size - file.tell():,} bytes"
            )
        demand_memory(path, needed, stored=info.compress_size)
        raw = np.empty(needed, np.uint8)
        for start in range(0, needed, _CHUNK):
            part = raw[start : start + _CHUNK]
            if file.readinto(part) != len(part):  # type: ignore[attr-defined]
                raise ConfigError(f"{path}: {key} is cut short")
        file.read(1)  # zipfile compares the checksum only at the end
    return raw.view(dtype).reshape(shape, order="F" if by_column else "C")


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
    stored = np.empty(images.shape, np.uint8)
    rows = max(1, _CHUNK // max(1, math.prod(images.shape[1:])))
    for start in range(0, len(images), rows):  # float64 temporaries of all would take eight times the memory
        part = images[start : start + rows]
        stored[start : start + rows] = np.rint((part if low >= 0 else (part + 1) / 2) * 255)
    return stored
