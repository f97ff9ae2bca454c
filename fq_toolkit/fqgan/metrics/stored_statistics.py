"""Mean and covariance of features in a file, as pytorch-fid and TTUR write and read them.

An ``.npz`` with ``mu`` (dim,) and ``sigma`` (dim, dim). Papers publish such files for data that they may not
pass on; a distance to one means something only with the features that it was made with.
"""

import io
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fq_toolkit.fqgan.metrics.frechet import Gaussian
from fq_toolkit.training.atomic import explain, write_atomic
from fq_toolkit.training.errors import ConfigError

_LARGEST = 16_384
"""Features: a covariance of more is over 2 GiB, and no extractor in use has as many."""


class StoredStatistics(NamedTuple):
    """Statistics of a set of images that are not at hand.

    mean: float64 (dim,).
    sigma: unbiased covariance, float64 (dim, dim).
    """

    mean: Tensor
    sigma: Tensor

    @property
    def dim(self) -> int:
        """Features."""
        return len(self.mean)

    def covariance(self) -> Tensor:
        """Return the covariance."""
        return self.sigma


def save_statistics(path: Path, statistics: Gaussian) -> None:
    """Write statistics, float64, for us and for others.

    Args:
        path: ends in ``.npz``.
        statistics: of images.

    Raises:
        ConfigError: for another ending.
        RunError: when the file cannot be written.
    """
    if path.suffix != ".npz":
        raise ConfigError(f"statistics go into a file that ends in .npz; got {path}")
    buffer = io.BytesIO()
    np.savez(buffer, mu=statistics.mean.numpy(), sigma=statistics.covariance().numpy())
    write_atomic(path, buffer.getvalue())


def load_statistics(path: Path, *, dim: int | None = None) -> StoredStatistics:
    """Read statistics that we, pytorch-fid or TTUR wrote.

    Args:
        path: the ``.npz``; nothing in it is unpickled.
        dim: features of the extractor that they are compared with.

    Raises:
        ConfigError: naming the file and what is wrong: it cannot be read, lacks an array, or holds what is no
            mean and covariance, or one of other features.
    """
    if not path.is_file():  # nor a pipe, which would be waited for
        raise ConfigError(f"{path} is no file of statistics (.npz with mu and sigma)")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if missing := {"mu", "sigma"} - set(arrays.files):
                raise ConfigError(
                    f"{path} has {', '.join(arrays.files) or 'no arrays'}; expected mu and sigma, and lacks "
                    f"{', '.join(sorted(missing))}"
                )
            _demand_size(path)
            mu, sigma = arrays["mu"], arrays["sigma"]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, MemoryError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = explain(error) if isinstance(error, OSError) and error.errno else str(error)
        raise ConfigError(f"{path} cannot be read as statistics: {reason}") from error
    if mu.dtype.kind != "f" or sigma.dtype.kind != "f":
        raise ConfigError(f"{path}: mu is {mu.dtype} and sigma {sigma.dtype}; expected floats")
    if mu.ndim != 1 or not len(mu) or sigma.shape != (len(mu), len(mu)):
        raise ConfigError(f"{path}: mu is {mu.shape} and sigma {sigma.shape}; expected (dim,) and (dim, dim)")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ConfigError(f"{path}: mu or sigma holds NaN or infinity")
    # Float32 covariances differ from their transposes by rounding, which grows with their largest entry.
    if np.abs(sigma - sigma.T).max() > 1e-4 * np.abs(sigma).max():
        raise ConfigError(f"{path}: sigma is not symmetric, so it is no covariance")
    if dim is not None and len(mu) != dim:
        raise ConfigError(
            f"{path} has statistics of {len(mu)} features, the extractor has {dim}: choose the one that they "
            "were made with (--extractor)"
        )
    both = (torch.from_numpy(np.ascontiguousarray(part, dtype=np.float64)) for part in (mu, sigma))
    mean, covariance = both
    return StoredStatistics(mean, (covariance + covariance.T) / 2)


def _demand_size(path: Path) -> None:
    """Refuse arrays that unpack to more than statistics can be, before they are unpacked."""
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > 8 * _LARGEST * (_LARGEST + 2):
        raise ConfigError(f"{path} unpacks to {size:,} bytes, more than statistics of {_LARGEST} features")
