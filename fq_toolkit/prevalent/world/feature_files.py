"""Files of view features: TSV (base64 float32), HDF5, and memory-mapped npz."""

import base64
import binascii
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from fq_toolkit.prevalent.files import DataError, check_readable
from fq_toolkit.prevalent.world.angles import VIEWS
from fq_toolkit.prevalent.world.world import NavWorld
from fq_toolkit.training.errors import require

TSV_FIELDS = ("scanId", "viewpointId", "image_w", "image_h", "vfov", "features")


def check_width(found: int, expected: int | None, where: str) -> None:
    """Check the width of features.

    Raises:
        DataError: with both widths.
    """
    if expected is not None and found != expected:
        raise DataError(
            f"{where}: features have width {found}; expected {expected}: give the width of the file "
            f"(--feature-dim {found}), or how many of its first columns are features (--feature-columns)"
        )


def kept_width(found: int, columns: int | None, where: str) -> int:
    """Return how many columns are features: all, or as many of the first ones as requested.

    Raises:
        DataError: if there are fewer.
    """
    if columns is None:
        return found
    if found < columns:
        raise DataError(
            f"{where}: features have width {found}; --feature-columns asks for the first {columns}"
        )
    return columns


def check_finite(rows: np.ndarray, where: str) -> np.ndarray:
    """Return features, checked to be finite.

    Raises:
        DataError: for NaN or infinity, which half precision makes of numbers above 65504.
    """
    if not np.isfinite(rows).all():
        raise DataError(f"{where}: features are not all finite in {rows.dtype}: NaN, infinite or too large")
    return rows


def half(rows: np.ndarray, where: str) -> np.ndarray:
    """Return features as float16.

    Raises:
        DataError: as `check_finite`.
    """
    with np.errstate(over="ignore"):  # the check reports it
        return check_finite(rows.astype(np.float16), where)


def split_key(key: str, where: str, world: NavWorld | None = None) -> tuple[str, str]:
    """Split ``SCAN_VIEWPOINT`` where the world knows the scan, or else at its last underscore.

    Raises:
        DataError: if there is no underscore, or two scans have such a viewpoint.
    """
    # Names of scans and viewpoints may hold underscores themselves; Matterport's do not.
    if world is not None and key.count("_") > 1:
        places = [i for i, letter in enumerate(key) if letter == "_" and i + 1 < len(key)]
        fits = [(key[:i], key[i + 1 :]) for i in places if key[:i] in world.names]
        if len(fits) > 1:
            fits = [(scan, viewpoint) for scan, viewpoint in fits if viewpoint in world.scan(scan).index]
        if len(fits) > 1:
            raise DataError(
                f"{where}: key {key!r} may be of the scans {' and '.join(repr(s) for s, _ in fits)}: write "
                "an npz, which keeps scan and viewpoint apart"
            )
        if fits:
            return fits[0]
    scan, underscore, viewpoint = key.rpartition("_")
    if not (scan and underscore and viewpoint):
        raise DataError(f"{where}: key {key!r} is not of the form SCAN_VIEWPOINT")
    return scan, viewpoint


def read_tsv(
    path: Path, dim: int | None, columns: int | None = None
) -> tuple[list[tuple[str, str]], np.ndarray]:
    """Read a TSV of six columns, the last of which is base64 of float32 (36, D).

    Args:
        path: the file, without a header.
        dim: width D; by default that of the first row.
        columns: number of leading columns to keep.

    Returns:
        (scan, viewpoint) of each row, and float16 (n, 36, D): half the memory at sufficient precision.

    Raises:
        DataError: naming the file, the line and the viewpoint.
    """
    check_readable(path)
    keys: list[tuple[str, str]] = []
    rows: list[np.ndarray] = []
    # Line by line: released files have several gigabytes. Damaged bytes become "?" and fail as base64 below.
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
            width, rest = divmod(len(raw), 4 * VIEWS)  # bytes of a float32 for each view
            if rest or not width:
                raise DataError(
                    f"{where}: features have {len(raw)} bytes, no multiple of {VIEWS} views of float32: "
                    "truncated or damaged"
                )
            kept = kept_width(width, columns, where)
            dim = kept if dim is None else dim
            check_width(kept, dim, where)
            rows.append(half(np.frombuffer(raw, dtype="<f4").reshape(VIEWS, width)[:, :kept], where))
            keys.append(key)
    return keys, np.stack(rows)


def map_npz(
    path: Path, dim: int | None, columns: int | None = None, world: NavWorld | None = None
) -> tuple[list[tuple[str, str]], np.ndarray]:
    """Map an npz with ``keys`` and ``features`` (n, 36, D) into memory; pages are read on use.

    Own code, because ``np.load(mmap_mode=...)`` ignores the mode for npz files and would read gigabytes.

    Keys are (n, 2), scan and viewpoint, or (n,) of the form SCAN_VIEWPOINT.

    Args:
        path: an uncompressed npz, as `FeatureStore.save_npz` writes it.
        dim: expected width D.
        columns: number of leading columns to keep.
        world: the graphs, which tell where the scan ends in a key.

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
                keys = np.lib.format.read_array(member, allow_pickle=False)  # a pickle could run code
            if entry.compress_type != zipfile.ZIP_STORED:
                raise DataError(
                    f"{path} is compressed and cannot be mapped: write it with FeatureStore.save_npz"
                )
        with open(path, "rb") as file:
            # The data of a zip entry follow its local header: 30 bytes, of which the last four hold the
            # lengths of the name and of the extra field. The central directory's lengths may be others.
            file.seek(entry.header_offset + 26)
            name_length, extra_length = (int.from_bytes(file.read(2), "little") for _ in range(2))
            file.seek(name_length + extra_length, 1)
            version = np.lib.format.read_magic(file)
            # Version 2 has a longer header; numpy chooses it by itself.
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
        array: np.ndarray = np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)
    except DataError:
        raise
    except Exception as error:  # numpy and zipfile raise nearly anything for damaged headers
        raise DataError(
            f"{path} is no readable npz of keys and features ({error}): truncated or damaged"
        ) from error
    kept = kept_width(shape[2], columns, str(path))
    check_width(kept, dim, str(path))
    array = array[:, :, :kept]
    if keys.ndim == 2:
        return [(str(scan), str(viewpoint)) for scan, viewpoint in keys], array
    return [split_key(str(key), str(path), world) for key in keys], array


class Hdf5Rows:
    """Rows of an HDF5 file with one dataset (36, D) per viewpoint, read on use.

    Args:
        path: the file.
        dim: width D; by default that of the first dataset. The others are checked when they are read, because
            asking each of 200,000 for its shape takes minutes.
        columns: number of leading columns to keep.
        world: the graphs, which tell where the scan ends in a name.

    Raises:
        DataError: naming the file and the dataset.
        MissingExtraError: without h5py.
    """

    def __init__(
        self,
        path: Path,
        dim: int | None,
        columns: int | None = None,
        world: NavWorld | None = None,
    ) -> None:
        check_readable(path)
        h5py = require("h5py", purpose="reading HDF5 features", extra="vln")
        try:
            with h5py.File(path, "r") as file:
                self._names = list(file)
                size = getattr(file[self._names[0]], "shape", None) if self._names else None
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise DataError(f"{path} is no readable HDF5 file ({error}): truncated or damaged") from error
        if not self._names:
            raise DataError(f"{path} holds no datasets")
        for name in self._names:
            if not isinstance(name, str):  # h5py gives bytes for names that are no UTF-8
                raise DataError(f"{path}: the name {name!r} is not UTF-8: truncated or damaged")
        self._path, self._columns = path, columns
        kept = self._checked_width(self._names[0], size)
        dim = kept if dim is None else dim
        check_width(kept, dim, f"{path}: dataset {self._names[0]!r}")
        self._open: tuple[int, Any] | None = None
        self.keys = [split_key(name, str(path), world) for name in self._names]
        self.shape = (len(self._names), VIEWS, dim)

    def _checked_width(self, name: str, size: Any) -> int:
        """Return how many columns of a dataset are features, after checking its shape."""
        where = f"{self._path}: dataset {name!r}"
        if size is None or len(size) != 2 or size[0] != VIEWS or not size[1]:
            raise DataError(f"{where} has shape {size}; expected ({VIEWS}, D)")
        return kept_width(size[1], self._columns, where)

    def _file(self) -> Any:
        """Return the open file; a forked process opens its own, as HDF5 files must not be shared."""
        if self._open is None or self._open[0] != os.getpid():
            h5py = require("h5py", purpose="reading HDF5 features", extra="vln")
            self._open = (os.getpid(), h5py.File(self._path, "r"))
        return self._open[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}  # an open file does not go to another process

    def row(self, index: int) -> np.ndarray:
        """Return one panorama, float32 (36, D).

        Raises:
            DataError: if its data cannot be read or are not finite.
        """
        name = self._names[index]
        where = f"{self._path}: dataset {name!r}"
        try:
            dataset = self._file()[name]
            kept = self._checked_width(name, getattr(dataset, "shape", None))
            check_width(kept, self.shape[2], where)
            with np.errstate(over="ignore"):  # the check below reports it
                row = np.asarray(dataset[:, :kept], dtype=np.float32)
        except DataError:
            raise
        except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{where} cannot be read ({error}): truncated?") from error
        return check_finite(row, where)


class SyntheticRows:
    """Standard normal rows that depend only on seed, scan and viewpoint.

    Args:
        keys: (scan, viewpoint) of each row.
        dim: width D.
        seed: seed of the numbers.
    """

    def __init__(self, keys: list[tuple[str, str]], dim: int, seed: int) -> None:
        self.keys, self.seed = keys, seed
        self.shape = (len(keys), VIEWS, dim)

    def row(self, index: int) -> np.ndarray:
        """Return one panorama, float32 (36, D)."""
        name = zlib.crc32("_".join(self.keys[index]).encode())  # hash() differs from process to process
        return np.random.default_rng([self.seed, name]).standard_normal(self.shape[1:], dtype=np.float32)
