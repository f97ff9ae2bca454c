"""The features that an option names: a file of one of three kinds, or noise."""

from pathlib import Path

import numpy as np

from fq_toolkit.prevalent.features import FeatureStore
from fq_toolkit.prevalent.world import NavWorld
from fq_toolkit.training.errors import ConfigError

SYNTHETIC = "synthetic"
FEATURE_DIM = 256
"""Default width of features, the same for every trainer, so that one goes on where another ended. Features
must outweigh the 128 numbers of their angles: with 64 small models connect no words with views."""


def open_features(source: str, world: NavWorld, *, dim: int) -> FeatureStore:
    """Return the features that an option names.

    Args:
        source: a file ending in .tsv, .npz, .hdf5 or .h5; or ``"synthetic"``: seeded noise per viewpoint,
            made once and kept in memory.
        world: whose viewpoints synthetic features cover.
        dim: width of synthetic features; of a file the width that is expected.

    Raises:
        DataError: for a damaged file, or one of another width.
        ConfigError: for a file of an unknown kind.
    """
    if source == SYNTHETIC:
        made = FeatureStore.synthetic(world, dim=dim, seed=0)
        array = np.empty((len(made), 36, made.dim), dtype=np.float16)
        for row in range(len(made)):
            array[row] = made.panorama(np.array([row]))[0]
        return FeatureStore(made.keys, array)
    readers = {
        ".tsv": FeatureStore.from_tsv, ".npz": FeatureStore.from_npz,
        ".hdf5": FeatureStore.from_hdf5, ".h5": FeatureStore.from_hdf5,
    }  # fmt: skip
    reader = readers.get(Path(source).suffix)
    if reader is None:
        raise ConfigError(
            f"features is {source!r}; expected {SYNTHETIC!r} or a file ending in {', '.join(readers)}"
        )
    return reader(source, dim=dim)
