"""The kernel distance between two sets of features."""

import torch
from torch import Tensor

_CHUNK = 1024


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Return the unbiased estimate of the squared maximum mean discrepancy with a cubic kernel.

    ``mean_{i != j} k(a_i, a_j) + mean_{i != j} k(b_i, b_j) - 2 mean_{i, j} k(a_i, b_j)`` with
    ``k(x, y) = (x . y / dim + 1)^3``, over all pairs and not over drawn subsets. Being unbiased, it may be a
    little below 0 for equal distributions. Everything is float64; no matrix of all pairs exists.

    Args:
        a: rows (n, dim), n >= 2.
        b: rows (m, dim), m >= 2.

    Raises:
        ValueError: for other shapes.

    Source: Binkowski et al., arXiv 1801.01401, section 4 and equation 5.

    Example:
        >>> kernel_distance(torch.zeros(3, 2), torch.ones(3, 2))
        7.0
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"the sets are {tuple(a.shape)} and {tuple(b.shape)}; expected 2 or more rows each")
    a, b = a.double(), b.double()
    return _inner(a) + _inner(b) - 2 * _kernel_sum(a, b) / (len(a) * len(b))


def _kernel_sum(a: Tensor, b: Tensor) -> float:
    parts = [((rows @ b.T) / a.shape[1] + 1).pow(3).sum() for rows in a.split(_CHUNK)]
    return float(torch.stack(parts).sum())


def _inner(rows: Tensor) -> float:
    """Return the mean kernel of different rows."""
    own = (rows.square().sum(1) / rows.shape[1] + 1).pow(3).sum()
    return (_kernel_sum(rows, rows) - float(own)) / (len(rows) * (len(rows) - 1))
