"""The features that an option names: a file of one of three kinds, or noise."""

from pathlib import Path

import numpy as np

from fq_toolkit.prevalent.world.features import FeatureStore
from fq_toolkit.prevalent.world.world import NavWorld
from fq_toolkit.training.errors import ConfigError

SYNTHETIC = "synthetic"
FEATURE_DIM = 256
"""Default width of features, the same for every trainer, so that one goes on where another ended. Features
must outweigh the 128 numbers of their angles: with 64 small models connect no words with views."""

RELEASED_DIM = 2048
"""Width of the features that the papers use."""


def open_features(
    source: str,
    world: NavWorld,
    *,
    dim: int | None,
    synthetic_dim: int = FEATURE_DIM,
    columns: int | None = None,
) -> FeatureStore:
    """Return the features that an option names.

    Args:
        source: a file ending in .tsv, .npz, .hdf5 or .h5; or ``"synthetic"``: seeded noise per viewpoint,
            made once and kept in memory.
        world: whose viewpoints synthetic features cover.
        dim: width that a file is expected to have; that of the file by default.
        synthetic_dim: width of synthetic features.
        columns: keep this many of the first columns of a file.

    Raises:
        DataError: for a damaged file, or one of another width.
        ConfigError: for a file of an unknown kind.
    """
    if source == SYNTHETIC:
        made = FeatureStore.synthetic(world, dim=synthetic_dim, seed=0)
        array = np.empty((len(made), 36, made.dim), dtype=np.float16)
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
    """Check the options that say how wide features are.

    Raises:
        ConfigError: naming the option.
    """
    for name, value in (("feature_dim", dim), ("feature_columns", columns)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; expected more than 0")
    if columns is not None and source == SYNTHETIC:
        raise ConfigError("feature_columns belongs to a file of features: give features too")
    if columns is not None and dim not in (None, columns):
        raise ConfigError(
            f"feature_dim is {dim} and feature_columns {columns}; expected equal numbers: leave "
            "feature_dim out"
        )
