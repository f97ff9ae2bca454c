"""FeatureStore: the 36 view features of every viewpoint, read from files or generated from a seed."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fq_toolkit.prevalent.files import DataError
from fq_toolkit.prevalent.world.angles import VIEWS
from fq_toolkit.prevalent.world.feature_files import (
    Hdf5Rows,
    SyntheticRows,
    check_finite,
    half,
    map_npz,
    read_tsv,
)
from fq_toolkit.prevalent.world.world import NavWorld
from fq_toolkit.training.errors import ConfigError, RunError

SYNTHETIC = "synthetic"
FEATURE_DIM = 256
"""Default width of features, the same for every trainer, so that a run can continue from a model of another.
Features must outweigh the 128 numbers of their angles: with 64, small models do not connect words with
views."""

RELEASED_DIM = 2048
"""Width of the features that the papers use."""

_KEPT_ROWS = 256  # panoramas that are remembered when rows are read one by one: 75 MB at width 2048


class FeatureStore:
    """Features (36, D) of viewpoints: an array, a memory map, or rows that are produced when needed.

    Args:
        keys: (scan, viewpoint) of each row.
        array: floats (n, 36, D).

    Raises:
        DataError: for a repeated key, or an array of another shape.

    Example:
        >>> store = FeatureStore([("s", "a"), ("s", "b")], np.ones((2, 36, 4), dtype=np.float16))
        >>> store.dim, store.rows([("s", "b")]).tolist(), store.panorama(store.rows([("s", "b")])).shape
        (4, [1], (1, 36, 4))
    """

    def __init__(self, keys: Iterable[tuple[str, str]], array: Any) -> None:
        if getattr(array, "ndim", None) != 3 or array.shape[1] != VIEWS:
            raise DataError(f"features have shape {np.shape(array)}; expected (n, {VIEWS}, D)")
        self._start(keys, array.shape, "features")
        # Exactly one of the two: rows that are all there, or a maker of rows.
        self._array: Any = array
        self._made: Hdf5Rows | SyntheticRows | None = None

    def _start(self, keys: Iterable[tuple[str, str]], shape: Sequence[int], source: str) -> None:
        """Set up what does not depend on where the rows come from."""
        # str(): keys of an npz are numpy strings, which would look different in every message.
        self.keys = [(str(scan), str(viewpoint)) for scan, viewpoint in keys]
        self._index = {key: row for row, key in enumerate(self.keys)}
        if len(self.keys) != shape[0]:
            raise DataError(f"{source}: {len(self.keys)} keys for {shape[0]} rows")
        if len(self._index) != len(self.keys):
            scan, viewpoint = next(key for row, key in enumerate(self.keys) if self._index[key] != row)
            raise DataError(f"{source}: viewpoint {scan}_{viewpoint} occurs twice")
        self.dim = int(shape[2])
        self._source = source
        self._finite = np.zeros(len(self.keys), dtype=bool)  # rows that `check` has seen
        self._recent: OrderedDict[int, np.ndarray] = OrderedDict()
        self._resident: dict[torch.device, torch.Tensor] = {}

    @classmethod
    def _from_rows(cls, rows: Hdf5Rows | SyntheticRows, source: str) -> "FeatureStore":
        """Return a store whose rows are produced when needed; there is no array for `__init__` to check."""
        store = cls.__new__(cls)
        store._start(rows.keys, rows.shape, source)
        store._array, store._made = None, rows
        return store

    @classmethod
    def from_tsv(
        cls, path: str | Path, *, dim: int | None = None, columns: int | None = None
    ) -> "FeatureStore":
        """Read the TSV of the released features (base64 float32, 36 views) into memory as float16.

        Args:
            path: the file.
            dim: expected width, 2048 for the released features; by default any.
            columns: number of leading columns to keep.

        Raises:
            DataError: for a missing, truncated or damaged file, or another width.
        """
        keys, array = read_tsv(Path(path), dim, columns)
        store = cls(keys, array)
        store._source = str(path)
        return store

    @classmethod
    def from_hdf5(
        cls,
        path: str | Path,
        *,
        dim: int | None = None,
        columns: int | None = None,
        world: NavWorld | None = None,
    ) -> "FeatureStore":
        """Open an HDF5 file with one dataset (36, D) per viewpoint, named ``SCAN_VIEWPOINT``.

        Args:
            path: the file.
            dim: expected width; by default any.
            columns: number of leading columns to keep; many files hold logits behind the features.
            world: the graphs, which tell where the scan ends in a key with several underscores.

        Raises:
            DataError: for a missing, truncated or damaged file, or another shape.
            MissingExtraError: without h5py.
        """
        return cls._from_rows(Hdf5Rows(Path(path), dim, columns, world), str(path))

    @classmethod
    def from_npz(
        cls,
        path: str | Path,
        *,
        dim: int | None = None,
        columns: int | None = None,
        world: NavWorld | None = None,
    ) -> "FeatureStore":
        """Map a file that `save_npz` wrote into memory.

        Args:
            path: the file.
            dim: expected width; by default any.
            columns: number of leading columns to keep; many files hold logits behind the features.
            world: the graphs, which tell where the scan ends in a key with several underscores.

        Raises:
            DataError: for a missing, truncated, damaged or compressed file, or another width.
        """
        store = cls(*map_npz(Path(path), dim, columns, world))
        store._source = str(path)
        return store

    @classmethod
    def synthetic(cls, world: NavWorld, *, dim: int = 2048, seed: int = 0) -> "FeatureStore":
        """Generate features: standard normal numbers that depend only on seed, scan and viewpoint.

        Args:
            world: the graphs whose viewpoints get features; all scans are read.
            dim: width D.
            seed: seed of the numbers.

        Raises:
            ValueError: for a width below 1.
        """
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        keys = [(name, viewpoint) for name in world.names for viewpoint in world.scan(name).viewpoints]
        return cls._from_rows(SyntheticRows(keys, dim, seed), f"synthetic features (seed {seed})")

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        return f"FeatureStore({self._source!r}, viewpoints={len(self)}, dim={self.dim})"

    def rows(self, keys: Iterable[tuple[str, str]]) -> np.ndarray:
        """Return the rows of viewpoints, int64 (n,).

        Args:
            keys: (scan, viewpoint) pairs.

        Raises:
            DataError: for a viewpoint without features.
        """
        try:
            return np.array([self._index[key] for key in keys], dtype=np.int64)
        except KeyError as error:
            scan, viewpoint = error.args[0]
            raise DataError(
                f"{self._source}: no features of viewpoint {viewpoint!r} of scan {scan!r} "
                f"(it has {len(self)} viewpoints)"
            ) from error

    def check(self, keys: Iterable[tuple[str, str]]) -> None:
        """Check that viewpoints have finite features; viewpoints checked before are not read again.

        Args:
            keys: (scan, viewpoint) pairs.

        Raises:
            DataError: naming source and viewpoint.
        """
        rows = self.rows(keys)
        for row in np.unique(rows[~self._finite[rows]]):  # in the order of the file, which reads fastest
            if self._array is not None:
                check_finite(self._array[row], f"{self._source}: viewpoint {'_'.join(self.keys[row])}")
            elif isinstance(self._made, Hdf5Rows):
                self._made.row(int(row))  # reading checks
            self._finite[row] = True

    def _row(self, row: int) -> np.ndarray:
        """Return a row that is produced when needed; the most recently used ones are kept."""
        if row in self._recent:  # least recently used goes first: agents of a batch share buildings
            self._recent.move_to_end(row)
            return self._recent[row]
        value = self._made.row(row)  # type: ignore[union-attr]
        self._recent[row] = value
        if len(self._recent) > _KEPT_ROWS:
            self._recent.popitem(last=False)
        return value

    def panorama(self, rows: np.ndarray) -> np.ndarray:
        """Return all views of some rows.

        Args:
            rows: int (B,).

        Returns:
            float32 (B, 36, D).
        """
        if self._array is not None:  # of a memory map only these rows are read
            return np.asarray(self._array[rows], dtype=np.float32)
        return np.stack([self._row(int(row)) for row in rows])

    def views(self, rows: np.ndarray, views: np.ndarray) -> np.ndarray:
        """Return some views of some rows.

        Args:
            rows: int (B,).
            views: int (B, M), 0 to 35.

        Returns:
            float32 (B, M, D).
        """
        if self._array is not None:
            return np.asarray(self._array[rows[:, None], views], dtype=np.float32)
        return np.stack([self._row(int(row))[chosen] for row, chosen in zip(rows, views, strict=True)])

    def resident(self, device: torch.device) -> torch.Tensor | None:
        """Return all features on a device, copied once; None for rows that are produced when needed."""
        if self._array is None:
            return None
        if device not in self._resident:
            # np.array copies: a memory map is read-only, which torch would warn about.
            self._resident[device] = torch.from_numpy(np.array(self._array)).to(device)
        return self._resident[device]

    def save_npz(self, path: str | Path) -> Path:
        """Write the features as float16, uncompressed so that `from_npz` can map them into memory.

        Args:
            path: the file, ending in .npz.

        Returns:
            The file.

        Raises:
            ValueError: for another ending.
            DataError: for features that are not finite in float16.
            RunError: if the file cannot be written.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise ValueError(f"a file of features must end in .npz, got {path}")
        array = np.empty((len(self), VIEWS, self.dim), dtype=np.float16)
        for row in range(len(self)):
            array[row] = half(self.panorama(np.array([row]))[0], "_".join(self.keys[row]))
        temporary = path.with_name(f".{path.stem}.tmp.npz")  # an interrupted write leaves no half file
        try:
            np.savez(temporary, keys=np.array(self.keys), features=array)
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise RunError(f"cannot write {path}: {error.strerror}") from error
        return path


def open_features(
    source: str,
    world: NavWorld,
    *,
    dim: int | None,
    synthetic_dim: int = FEATURE_DIM,
    columns: int | None = None,
) -> FeatureStore:
    """Open the features that an option names.

    Args:
        source: a file ending in .tsv, .npz, .hdf5 or .h5; or ``"synthetic"``: seeded noise per viewpoint,
            generated once and kept in memory.
        world: the graphs whose viewpoints synthetic features cover.
        dim: expected width of a file; by default that of the file.
        synthetic_dim: width of synthetic features.
        columns: number of leading columns of a file to keep.

    Raises:
        DataError: for a damaged file, or one of another width.
        ConfigError: for a file of an unknown kind.
    """
    if source == SYNTHETIC:
        # An array, because generating rows anew in each step would be slower than training.
        made = FeatureStore.synthetic(world, dim=synthetic_dim, seed=0)
        array = np.empty((len(made), VIEWS, made.dim), dtype=np.float16)
        for row in range(len(made)):
            array[row] = made.panorama(np.array([row]))[0]
        return FeatureStore(made.keys, array)
    ending = Path(source).suffix
    if ending == ".tsv":
        return FeatureStore.from_tsv(source, dim=dim, columns=columns)
    if ending == ".npz":
        return FeatureStore.from_npz(source, dim=dim, columns=columns, world=world)
    if ending in (".hdf5", ".h5"):
        return FeatureStore.from_hdf5(source, dim=dim, columns=columns, world=world)
    raise ConfigError(
        f"features is {source!r}; expected {SYNTHETIC!r} or a file ending in .tsv, .npz, .hdf5 or .h5"
    )


def check_columns(source: str, dim: int | None, columns: int | None) -> None:
    """Check the options for the width of features.

    Raises:
        ConfigError: naming the option.
    """
    for name, value in (("feature_dim", dim), ("feature_columns", columns)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; expected more than 0")
    # Options that would have no effect are refused, or the user would believe that they had.
    if columns is not None and source == SYNTHETIC:
        raise ConfigError("feature_columns belongs to a file of features: give features too")
    if columns is not None and dim not in (None, columns):
        raise ConfigError(
            f"feature_dim is {dim} and feature_columns {columns}; expected equal numbers: leave "
            "feature_dim out"
        )
