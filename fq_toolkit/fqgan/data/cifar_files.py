"""CIFAR-10 and CIFAR-100 as their authors publish them: Python pickles, and binary files."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from fq_toolkit.fqgan.data.file_bounds import regular_size
from fq_toolkit.fqgan.data.plain_pickles import LARGEST, StoredArray, read_pickle
from fq_toolkit.training.errors import ConfigError

PIXELS = 3 * 32 * 32


class LabelledBytes(NamedTuple):
    """Images and labels as a file stores them.

    images: uint8 (N, C, H, W).
    labels: int64 (N,).
    num_classes: classes that the format has.
    kind: of files, for people.
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    kind: str


def _read_python_batch(path: Path, key: bytes, classes: int) -> tuple[np.ndarray, np.ndarray]:
    batch = read_pickle(path)
    if b"data" not in batch or key not in batch:
        raise ConfigError(f"{path} has the entries {sorted(map(repr, batch))}; expected b'data' and {key!r}")
    data, numbers = batch[b"data"], batch[key]
    # By type: numpy would take booleans and floats, and round the latter.
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        raise ConfigError(f"{path}: {key!r} is no list of numbers")
    try:
        rows = data.to_numpy() if isinstance(data, StoredArray) else np.zeros(0, np.uint8)
        labels = np.array(numbers, dtype=np.int64)
    except (ValueError, TypeError, OverflowError) as error:
        raise ConfigError(f"{path} is damaged: {error}") from error
    if rows.ndim != 2 or rows.shape[1] != PIXELS:
        raise ConfigError(f"{path}: data has shape {rows.shape}; expected (n, {PIXELS})")
    return _checked(path, rows, labels, classes)


def _read_binary_batch(path: Path, label_bytes: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Read records of ``label_bytes`` labels, the last of which is used, and 3072 pixels."""
    record, size = label_bytes + PIXELS, regular_size(path)
    if size == 0 or size % record or size > LARGEST:
        raise ConfigError(
            f"{path} has {size} bytes; expected a multiple of {record} (a label and 32x32x3), "
            f"and fewer than {LARGEST:,}"
        )
    try:
        # Not more than was checked: the file may have grown since.
        rows = np.fromfile(path, dtype=np.uint8, count=size).reshape(-1, record)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    return _checked(path, rows[:, label_bytes:], rows[:, label_bytes - 1].astype(np.int64), classes)


def _checked(path: Path, rows: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    if labels.shape != (len(rows),):
        raise ConfigError(f"{path} has {len(rows)} images and labels of shape {labels.shape}")
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        raise ConfigError(f"{path} has the label {outside[0]}; expected 0 to {classes - 1}")
    return rows.reshape(-1, 3, 32, 32), labels


class _Layout(NamedTuple):
    """File names and labels of one published format.

    beside: another file that has to be there: ``data_batch_1`` and ``train`` alone are too common as names.
    label: key of the labels in a pickle; or how many bytes of labels a binary record starts with.
    """

    name: str
    folder: str
    batches: tuple[str, ...]
    beside: str
    label: "bytes | int"
    classes: int


_TEN = tuple(f"data_batch_{i}" for i in range(1, 6))
_TEN_BINARY = tuple(f"{name}.bin" for name in _TEN)
LAYOUTS = (
    _Layout("CIFAR-10, python", "cifar-10-batches-py", _TEN, "data_batch_1", b"labels", 10),
    _Layout("CIFAR-10, binary", "cifar-10-batches-bin", _TEN_BINARY, "data_batch_1.bin", 1, 10),
    _Layout("CIFAR-100, python", "cifar-100-python", ("train",), "meta", b"fine_labels", 100),
    _Layout("CIFAR-100, binary", "cifar-100-binary", ("train.bin",), "fine_label_names.txt", 2, 100),
)


def find_cifar(folder: Path) -> "tuple[_Layout, Path] | None":
    """Return which published format lies in a folder, or in a folder of its usual name inside; or None."""
    for layout in LAYOUTS:
        for place in (folder, folder / layout.folder):
            first = place / layout.batches[0]
            if first.is_file() and (place / layout.beside).is_file():
                return layout, place
    return None


def read_cifar(layout: _Layout, folder: Path) -> LabelledBytes:
    """Read the training images of a published format; missing batches are left out and counted.

    Raises:
        ConfigError: for a file that is damaged, of other content, or hostile.
    """
    paths = [folder / name for name in layout.batches if (folder / name).is_file()]
    parts = [
        _read_python_batch(path, layout.label, layout.classes)
        if isinstance(layout.label, bytes)
        else _read_binary_batch(path, layout.label, layout.classes)
        for path in paths
    ]
    images, labels = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    missing = len(layout.batches) - len(paths)
    kind = layout.name + (f" ({len(paths)} of {len(layout.batches)} batches)" if missing else "")
    return LabelledBytes(images, labels, layout.classes, kind)
