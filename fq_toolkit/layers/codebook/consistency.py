"""What moving statistics say about a codebook, and statistics for a codebook that came without.

The law of a dictionary is ``e_k = m_k / smoothed_k`` with ``smoothed_k = (n_k + eps) / (sum n + K eps) *
sum n``.  Codes that have just started obey ``e_k = m_k / n_k`` instead.  Where a codebook and its statistics
disagree, the codebook counts: it is what is looked up, and the next update would otherwise put back what the
stale sums remember.  Everything stays on the device.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

#: Relative to the largest entry of a code: well above the rounding of an update, below any wanted change.
_TOLERANCE = 1e-4
_SMALLEST = 1e-30


def smoothed_counts(counts: Tensor, eps: float, scale: Tensor | float = 1.0) -> Tensor:
    r"""Return by what moving sums must be divided to be codes, ``(K,)``.

    .. math:: \frac{n_k + \epsilon}{\sum n + K \epsilon} \sum n

    The smoothing keeps the total, and keeps a code that nothing has chosen for long from dividing by zero.
    ``scale`` is what debiasing multiplies ``n`` by; the result is divided by it again, as the sums are raw.
    """
    seen = counts * scale
    total = seen.sum()
    return (seen + eps) / (total + counts.shape[0] * eps) * total / scale


def disagreeing(
    codebook: Tensor,
    counts: Tensor,
    sums: Tensor,
    eps: float,
    scale: Tensor | float,
    unit: bool,
    may_be_blank: bool,
) -> Tensor:
    """Find the codes that their moving statistics do not account for.

    Args:
        codebook: ``(K, C)``.
        counts: ``(K,)``.
        sums: ``(K, C)``.
        eps: the smoothing constant.
        scale: what debiasing multiplies the statistics by.
        unit: codes are unit vectors, so that only directions count.
        may_be_blank: sums of zero are in order before any data.

    Returns:
        ``(K,)`` bool. Before any data, sums equal to the codes are in order. A code that is not finite
        accounts for itself.
    """
    # Three laws, any of which a code may obey: that of the update, that of a code which has just started
    # (without smoothing), and before any data that of the start.
    expected = sums / smoothed_counts(counts, eps, scale)[:, None]
    if unit:
        expected = F.normalize(expected, dim=1)
    size = codebook.abs().amax(dim=1, keepdim=True)
    slack = _TOLERANCE * size + _SMALLEST
    lawful = ((codebook - expected).abs() <= slack).all(dim=1)
    started = ((codebook * counts[:, None] - sums).abs() <= slack * counts[:, None]).all(dim=1) & (counts > 0)
    alike = F.normalize(sums, dim=1) if unit else sums
    blank = ((codebook - alike).abs() <= slack).all(dim=1)
    if may_be_blank:
        blank = blank | (sums == 0).all(dim=1)
    before_data = counts.sum() == 0
    fine = torch.where(before_data, blank, lawful | started)
    # A comparison with NaN is never lawful, so such a code is left out by name.
    return torch.isfinite(codebook).all(dim=1) & ~fine


def account_for(
    codebook: Tensor,
    counts: Tensor,
    sums: Tensor,
    rows: Tensor,
    keep: bool,
    eps: float,
    scale: Tensor | float,
) -> tuple[Tensor, Tensor]:
    """Compute statistics that account for some codes.

    Args:
        codebook: ``(K, C)``.
        counts: ``(K,)``.
        sums: ``(K, C)``.
        rows: ``(K,)`` bool, the codes.
        keep: hold on to their counts; else each counts one row, as if it had just started.
        eps: as in `disagreeing`.
        scale: as in `disagreeing`.

    Returns:
        Counts ``(K,)`` and sums ``(K, C)``, unchanged for the other codes.
    """
    if not keep:
        return torch.where(rows, 1.0, counts), torch.where(rows[:, None], codebook, sums)
    # Before any data the counts are zero, and so would be what the sums are divided by.
    counts = torch.where(rows & (counts.sum() == 0), 1.0, counts)
    restored = codebook * smoothed_counts(counts, eps, scale)[:, None]
    return counts, torch.where(rows[:, None], restored, sums)


def center_of(codebook: Tensor, counts: Tensor | None = None) -> Tensor:
    """Return a center for a codebook, ``(C,)``: the mean of the finite codes, weighted by their counts.

    Any finite value is valid; one amid the features saves work, and keeps the digits of ``precision="fast"``.
    """
    finite = torch.isfinite(codebook)
    codes = torch.where(finite, codebook, 0.0)
    weights = finite.to(codebook.dtype)
    plain = codes.sum(dim=0) / weights.sum(dim=0).clamp(min=1)
    if counts is not None:
        weights = weights * counts[:, None]
        weighted = (codes * weights).sum(dim=0) / weights.sum(dim=0)
        plain = torch.where(torch.isfinite(weighted), weighted, plain)
    return torch.where(torch.isfinite(plain), plain, 0.0)
