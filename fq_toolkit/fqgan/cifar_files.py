"""CIFAR-10 and CIFAR-100 from the files that their authors publish: python pickles, and binary.

A pickle is a program. These are read by an unpickler that knows three names, those that a numpy array needs,
and gives it inert stand-ins for them: whatever else a file asks for is refused before anything is called.
"""

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fq_toolkit.training.errors import ConfigError

PIXELS = 3 * 32 * 32


class LabelledBytes(NamedTuple):
    """Images and labels as a file stores them.

    images: uint8 (N, C, H, W).
    labels: int64 (N,).
    num_classes: classes that the format has.
    found: what it is, for people.
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    found: str


class _DType:
    """Stands for ``numpy.dtype`` while a pickle is read: remembers its name, does nothing."""

    def __init__(self, name: Any = None, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Ignore byte order and fields."""


class _Array:
    """Stands for ``numpy.ndarray`` while a pickle is read: remembers shape, type and bytes."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def to_numpy(self) -> np.ndarray:
        """Return a real array of bytes.

        Raises:
            ValueError: when the state is not that of a uint8 array.
        """
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            raise ValueError("an array without content")
        _, shape, dtype, by_column, data = self.state
        if not isinstance(dtype, _DType) or dtype.name not in ("u1", b"u1", "|u1", b"|u1"):
            raise ValueError(f"an array of {getattr(dtype, 'name', dtype)!r}; expected bytes (u1)")
        if isinstance(data, str):
            data = data.encode("latin1")
        if not isinstance(data, bytes) or not all(isinstance(n, int) and n >= 0 for n in shape):
            raise ValueError("an array whose content is not bytes")
        if math.prod(shape) != len(data):
            raise ValueError(f"an array of shape {shape} with {len(data)} bytes")
        return np.frombuffer(data, dtype=np.uint8).reshape(shape, order="F" if by_column else "C")


def _reconstruct(*_: Any) -> _Array:
    """Stand for numpy's function that makes the empty array which the pickle then fills."""
    return _Array()


def _encode(text: Any, *_: Any) -> bytes:
    """Stand for ``codecs.encode``, with which python 3 writes bytes into old pickles."""
    if not isinstance(text, str):
        raise pickle.UnpicklingError(f"bytes made of {type(text).__name__}")
    return text.encode("latin1")


class _Sealed:
    """A function that a pickle may call and may not change."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        """Call the function."""
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it tries to change a function")


_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): _Sealed(_reconstruct),
    ("numpy._core.multiarray", "_reconstruct"): _Sealed(_reconstruct),
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Sealed(_DType),
    ("_codecs", "encode"): _Sealed(_encode),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads dicts, lists, numbers, text and arrays, and refuses to look up any other name."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of a known name.

        Raises:
            UnpicklingError: for any other name.
        """
        try:
            return _KNOWN[(module, name)]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch needs") from None


def read_pickle(path: Path) -> dict[bytes, Any]:
    """Read a batch file without running anything in it.

    Returns:
        Its dictionary, keys as bytes.

    Raises:
        ConfigError: when it cannot be read, is no pickle of plain data, or asks for anything to be called.
    """
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="bytes").load()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # a hostile or damaged pickle may raise anything
        raise ConfigError(
            f"{path} is refused: {str(error) or type(error).__name__}. A CIFAR batch is a pickle of plain "
            "arrays and lists; nothing of this file was run"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {type(content).__name__}; expected the dictionary of a CIFAR batch")
    return {key.encode() if isinstance(key, str) else key: value for key, value in content.items()}


def _read_python_batch(path: Path, key: bytes, classes: int) -> tuple[np.ndarray, np.ndarray]:
    batch = read_pickle(path)
    if b"data" not in batch or key not in batch:
        raise ConfigError(f"{path} has the entries {sorted(map(repr, batch))}; expected b'data' and {key!r}")
    data = batch[b"data"]
    try:
        rows = data.to_numpy() if isinstance(data, _Array) else np.zeros(0, np.uint8)
        labels = np.array(batch[key], dtype=np.int64)
    except (ValueError, TypeError, OverflowError) as error:
        raise ConfigError(f"{path} is damaged: {error}") from error
    if rows.ndim != 2 or rows.shape[1] != PIXELS:
        raise ConfigError(f"{path}: data has shape {rows.shape}; expected (n, {PIXELS})")
    return _checked(path, rows, labels, classes)


def _read_binary_batch(path: Path, label_bytes: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Read records of ``label_bytes`` labels, the last of which is used, and 3072 pixels."""
    raw = np.fromfile(path, dtype=np.uint8)
    record = label_bytes + PIXELS
    if len(raw) == 0 or len(raw) % record:
        raise ConfigError(
            f"{path} has {len(raw)} bytes; expected a multiple of {record} (a label and 32x32x3)"
        )
    rows = raw.reshape(-1, record)
    return _checked(path, rows[:, label_bytes:], rows[:, label_bytes - 1].astype(np.int64), classes)


def _checked(path: Path, rows: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    if labels.shape != (len(rows),):
        raise ConfigError(f"{path} has {len(rows)} images and labels of shape {labels.shape}")
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        raise ConfigError(f"{path} has the label {outside[0]}; expected 0 to {classes - 1}")
    return rows.reshape(-1, 3, 32, 32), labels


class _Layout(NamedTuple):
    """File names of one published form."""

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
    """Return which published form lies in a folder, or in the folder of its usual name inside; or None."""
    for layout in LAYOUTS:
        for place in (folder, folder / layout.folder):
            first = place / layout.batches[0]
            if first.is_file() and (place / layout.beside).is_file():
                return layout, place
    return None


def read_cifar(layout: _Layout, folder: Path) -> LabelledBytes:
    """Read the training images of a published form; batches that are not there are left out and counted.

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
    found = layout.name + (f" ({len(paths)} of {len(layout.batches)} batches)" if missing else "")
    return LabelledBytes(images, labels, layout.classes, found)
