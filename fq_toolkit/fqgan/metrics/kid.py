"""The kernel distance between two sets of features."""

import math

from torch import Tensor

from fq_toolkit.fqgan.metrics.feature_rows import finite_rows

_CHUNK = 1024


class KernelSet:
    """One side of a kernel distance, with the terms that depend only on it.

    Args:
        rows: (n, dim), n >= 2.

    Raises:
        ValueError: for another shape, or for values that are not finite or too large to multiply.
    """

    def __init__(self, rows: Tensor) -> None:
        if rows.ndim != 2 or len(rows) < 2:
            raise ValueError(f"the set is {tuple(rows.shape)}; expected 2 or more rows (n, dim)")
        self.rows = finite_rows(rows)
        own = (self.rows.square().sum(1) / rows.shape[1] + 1).pow(3).sum()
        pairs = len(rows) * (len(rows) - 1)
        # Mean kernel of different rows: the diagonal would bias it.
        self.inner = (_kernel_sum(self.rows, self.rows) - float(own)) / pairs
        if not math.isfinite(self.inner):
            raise ValueError("features are too large for a kernel distance: their products overflow")


def kernel_distance(a: "Tensor | KernelSet", b: "Tensor | KernelSet") -> float:
    """Return the unbiased estimate of the squared maximum mean discrepancy with a cubic kernel.

    ``mean_{i != j} k(a_i, a_j) + mean_{i != j} k(b_i, b_j) - 2 mean_{i, j} k(a_i, b_j)`` with
    ``k(x, y) = (x . y / dim + 1)^3``, over all pairs and not over drawn subsets. Being unbiased, it may be a
    little below 0 for equal distributions. Everything is float64; no matrix of all pairs exists.

    The three terms are of the size ``(|x|^2 / dim)^3`` and nearly cancel: features with a mean of m lose
    about ``6 log10(m)`` of the 16 digits, so a common offset of 100 leaves 4 of them. That is the measure's,
    in any implementation; extractors in use have features around 1.

    Args:
        a: rows (n, dim), n >= 2, or a set made of them.
        b: rows (m, dim), m >= 2, or a set made of them.

    Raises:
        ValueError: for other shapes, or for values that are not finite or too large to multiply.

    Source: Binkowski et al., arXiv 1801.01401, section 4 and equation 5.

    Example:
        >>> import torch
        >>> kernel_distance(torch.zeros(3, 2), torch.ones(3, 2))
        7.0
    """
    a, b = (side if isinstance(side, KernelSet) else KernelSet(side) for side in (a, b))
    if a.rows.shape[1] != b.rows.shape[1]:
        raise ValueError(f"the sets have {a.rows.shape[1]} and {b.rows.shape[1]} features; expected the same")
    # finite: no product of two rows is larger than the larger one's own
    return a.inner + b.inner - 2 * _kernel_sum(a.rows, b.rows) / (len(a.rows) * len(b.rows))


def _kernel_sum(a: Tensor, b: Tensor) -> float:
    total = 0.0
    for rows in a.split(_CHUNK):
        kernel = (rows @ b.T).div_(a.shape[1]).add_(1)
        total += float((kernel * kernel).mul_(kernel).sum())  # pow(3) is ten times slower
    return total
