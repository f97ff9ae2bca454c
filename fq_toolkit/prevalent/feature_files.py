"""Files of view features: TSV (base64 float32), HDF5, and memory-mapped npz."""

import base64
import binascii
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from fq_toolkit.prevalent.angles import VIEWS
from fq_toolkit.prevalent.files import DataError, check_readable
from fq_toolkit.training.extras import require

TSV_FIELDS = ("scanId", "viewpointId", "image_w", "image_h", "vfov", "features")


def check_width(found: int, expected: int | None, where: str) -> None:
    """Check the width of features.

    Raises:
        DataError: with both widths.
    """
    if expected is not None and found != expected:
        raise DataError(f"{where}: features have width {found}; expected {expected}")


def check_finite(rows: np.ndarray, where: str) -> np.ndarray:
    """Return features, or say that some are no numbers.

    Raises:
        DataError: for NaN or infinity, such as half precision makes of numbers above 65504.
    """
    if not np.isfinite(rows).all():
        raise DataError(f"{where}: features are not all finite in {rows.dtype}: NaN, infinite or too large")
    return rows


def half(rows: np.ndarray, where: str) -> np.ndarray:
    """Return features as float16.

    Raises:
        DataError: as `check_finite`.
    """
    with np.errstate(over="ignore"):  # the check says it
        return check_finite(rows.astype(np.float16), where)


def split_key(key: str, where: str) -> tuple[str, str]:
    """Split ``SCAN_VIEWPOINT`` at its last underscore.

    Raises:
        DataError: when there is none.
    """
    scan, underscore, viewpoint = key.rpartition("_")
    if not (scan and underscore and viewpoint):
        raise DataError(f"{where}: key {key!r} is not of the form SCAN_VIEWPOINT")
    return scan, viewpoint


def read_tsv(path: Path, dim: int | None) -> tuple[list[tuple[str, str]], np.ndarray]:
    """Read a TSV of six columns, the last of which is base64 of float32 (36, D), row by row.

    Args:
        path: the file, without a header.
        dim: width D; that of the first row by default.

    Returns:
        (scan, viewpoint) of each row, and float16 (n, 36, D): half the memory, and what features are worth.

    Raises:
        DataError: naming the file, the line and the viewpoint.
    """
    check_readable(path)
    keys: list[tuple[str, str]] = []
    rows: list[np.ndarray] = []
    with open(path, encoding="ascii", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            parts = line.rstrip("\r\n").split("\t")
            if len(parts) != len(TSV_FIELDS):
                raise DataError(
                    f"{path}: line {number} has {len(parts)} columns; expected {len(TSV_FIELDS)} "
                    f"({', '.join(TSV_FIELDS)}): truncated, or another format"
                )
            key = (parts[0], parts[1])
            where = f"{path}: line {number}, viewpoint {parts[0]}_{parts[1]}"
            try:
                raw = base64.b64decode(parts[5], validate=True)
            except (binascii.Error, ValueError) as error:
                raise DataError(
                    f"{where}: features are not base64 ({error}): truncated or damaged"
                ) from error
            width, rest = divmod(len(raw), 4 * VIEWS)
            if rest or not width:
                raise DataError(
                    f"{where}: features have {len(raw)} bytes, no multiple of {VIEWS} views of float32: "
                    "truncated or damaged"
                )
            dim = width if dim is None else dim
            check_width(width, dim, where)
            rows.append(half(np.frombuffer(raw, dtype="<f4").reshape(VIEWS, width), where))
            keys.append(key)
    return keys, np.stack(rows)


def map_npz(path: Path, dim: int | None) -> tuple[list[tuple[str, str]], np.ndarray]:
    """Map a npz with ``keys`` and ``features`` (n, 36, D) into memory; pages are read on use.

    Keys are (n, 2), scan and viewpoint, or (n,) of the form SCAN_VIEWPOINT.

    Args:
        path: an uncompressed npz, as `FeatureStore.save_npz` writes it.
        dim: width D that is expected.

    Returns:
        (scan, viewpoint) of each row, and the read-only array.

    Raises:
        DataError: naming the file and what is wrong.
    """
    check_readable(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo("features.npy")
            with archive.open("keys.npy") as member:
                keys = np.lib.format.read_array(member, allow_pickle=False)
            if entry.compress_type != zipfile.ZIP_STORED:
                raise DataError(
                    f"{path} is compressed and cannot be mapped: write it with FeatureStore.save_npz"
                )
        with open(path, "rb") as file:
            file.seek(entry.header_offset + 26)
            name_length, extra_length = (int.from_bytes(file.read(2), "little") for _ in range(2))
            file.seek(name_length + extra_length, 1)
            version = np.lib.format.read_magic(file)
            reader = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                reader = np.lib.format.read_array_header_2_0
            shape, fortran, dtype = reader(file)
            offset = file.tell()
        if keys.ndim not in (1, 2) or keys.shape[1:] not in ((), (2,)):
            raise DataError(f"{path}: keys have shape {keys.shape}; expected (n, 2), scan and viewpoint")
        if fortran or len(shape) != 3 or shape[:2] != (len(keys), VIEWS) or dtype.kind != "f" or not shape[2]:
            raise DataError(
                f"{path}: features are {dtype} of shape {shape}; expected floats ({len(keys)}, {VIEWS}, D), "
                "one row per key"
            )
        array = np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)
    except DataError:
        raise
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, EOFError) as error:
        raise DataError(
            f"{path} is no readable npz of keys and features ({error}): truncated or damaged"
        ) from error
    check_width(shape[2], dim, str(path))
    if keys.ndim == 2:
        return [(str(scan), str(viewpoint)) for scan, viewpoint in keys], array
    return [split_key(str(key), str(path)) for key in keys], array


class Hdf5Rows:
    """Rows of an HDF5 file with one dataset (36, D) per viewpoint, read on use.

    Args:
        path: the file.
        dim: width D; that of the first dataset by default.

    Raises:
        DataError: naming the file and the dataset.
        MissingExtraError: without h5py.
    """

    def __init__(self, path: Path, dim: int | None) -> None:
        check_readable(path)
        h5py = require("h5py", purpose="reading HDF5 features", extra="vln")
        try:
            with h5py.File(path, "r") as file:
                self._names = list(file)
                sizes = [getattr(file[name], "shape", None) for name in self._names]
        except (OSError, RuntimeError, KeyError) as error:
            raise DataError(f"{path} is no readable HDF5 file ({error}): truncated or damaged") from error
        for name, size in zip(self._names, sizes, strict=True):
            where = f"{path}: dataset {name!r}"
            if size is None or len(size) != 2 or size[0] != VIEWS:
                raise DataError(f"{where} has shape {size}; expected ({VIEWS}, D)")
            dim = size[1] if dim is None else dim
            check_width(size[1], dim, where)
        if dim is None:
            raise DataError(f"{path} holds no datasets")
        self._path = path
        self._open: tuple[int, Any] | None = None
        self.keys = [split_key(name, str(path)) for name in self._names]
        self.shape = (len(self._names), VIEWS, dim)

    def _file(self) -> Any:
        """Return the open file; a process that was forked off opens its own."""
        if self._open is None or self._open[0] != os.getpid():
            h5py = require("h5py", purpose="reading HDF5 features", extra="vln")
            self._open = (os.getpid(), h5py.File(self._path, "r"))
        return self._open[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    def row(self, index: int) -> np.ndarray:
        """Return one panorama, float32 (36, D).

        Raises:
            DataError: when its data cannot be read, or are not finite.
        """
        name = self._names[index]
        where = f"{self._path}: dataset {name!r}"
        try:
            row = np.asarray(self._file()[name][()], dtype=np.float32)
        except (OSError, RuntimeError, ValueError) as error:
            raise DataError(f"{where} cannot be read ({error}): truncated?") from error
        return check_finite(row, where)


class SyntheticRows:
    """Standard normal rows that depend on seed, scan and viewpoint only.

    Args:
        keys: (scan, viewpoint) of each row.
        dim: width D.
        seed: of the numbers.
    """

    def __init__(self, keys: list[tuple[str, str]], dim: int, seed: int) -> None:
        self.keys, self.seed = keys, seed
        self.shape = (len(keys), VIEWS, dim)

    def row(self, index: int) -> np.ndarray:
        """Return one panorama, float32 (36, D)."""
        name = zlib.crc32("_".join(self.keys[index]).encode())
        return np.random.default_rng([self.seed, name]).standard_normal(self.shape[1:], dtype=np.float32)
