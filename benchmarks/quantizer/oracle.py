"""The nearest code by definition: float64 direct differences in channel order, in plain numpy.

Independent of the package on purpose: the gates compare the package against this.
"""

from __future__ import annotations

import numpy as np


def direct_distances(rows: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Return (N, K) float64 squared distances of (N, D) and (K, D), summed channel by channel."""
    wide_rows, wide_codes = rows.astype(np.float64), codebook.astype(np.float64)
    total = np.zeros((len(rows), len(codebook)))
    with np.errstate(over="ignore", invalid="ignore"):
        for channel in range(rows.shape[1]):
            difference = wide_rows[:, channel, None] - wide_codes[None, :, channel]
            total += difference * difference
    return total


def nearest_code(rows: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Return the lowest nearest code; -1 for a row with NaN or Inf, and when no code is finite."""
    live = np.isfinite(codebook).all(axis=1)
    if not live.any():
        return np.full(len(rows), -1)
    distances = direct_distances(rows, codebook)
    distances[:, ~live] = np.inf
    index = distances.argmin(axis=1)
    lost = ~live[index]  # every distance is infinite: the lowest live code
    index[lost] = live.argmax()
    index[~np.isfinite(rows).all(axis=1)] = -1
    return index


def wrong_share(indices: np.ndarray, rows: np.ndarray, codebook: np.ndarray, limit: int = 1 << 19) -> float:
    """Return the share of wrong indices in an evenly spaced sample of rows (at most ``limit`` pairs)."""
    count = max(1, min(len(rows), limit // len(codebook)))
    sample = np.linspace(0, len(rows) - 1, count).astype(int)
    return float((indices[sample] != nearest_code(rows[sample], codebook)).mean())
