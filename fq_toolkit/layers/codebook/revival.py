"""Dead codes restart from rows of the batch: which codes, from which rows, and with which statistics.

Everything is decided on the device, without a random number.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fq_toolkit.layers.checks import between
from fq_toolkit.layers.codebook import distributed
from fq_toolkit.layers.codebook.initialization import pick_rows

_GOLDEN_32 = 2654435769  # 2^32 divided by the golden ratio


def check_threshold(revive: float, revive_by: str) -> float:
    """Return ``revive`` as a number in its range.

    Raises:
        ValueError: a share outside [0, 1], or a negative count.
    """
    if revive_by == "share" and 1 < revive < math.inf:
        raise ValueError(
            f"revive={revive} is a share of the mean moving count and must be in [0, 1]: above 1 even an "
            'evenly used dictionary restarts in every step; for a threshold in rows pass revive_by="count"'
        )
    return between("revive", revive, 0, math.inf if revive_by == "count" else 1)


@torch.no_grad()
def restart_dead_codes_(
    codebook: Tensor,
    ema_counts: Tensor,
    ema_sums: Tensor,
    chosen_counts: Tensor,
    counts: Tensor,
    candidates: Tensor,
    *,
    decay: float,
    revive: float,
    revive_by: str,
    scale: Tensor | float,
) -> Tensor:
    """Restart the codes that an update has left below the threshold, in place.

    With ``n`` the moving counts after the update and ``N`` the rows of its batch, the threshold is::

        revive * w,  w = min(sum(n), N) / K     revive_by="share"
        revive                                  revive_by="count"

    A code below it takes its candidate as centroid, with a moving count of ``w`` (or 1): under "share" a code
    that the data never chooses stays for ``log(revive) / log(decay)`` updates before it restarts again.
    ``N`` bounds ``w`` because restarts add to ``sum(n)``: they would otherwise raise their own threshold.

    Args:
        codebook: ``(K, C)`` float32, changed.
        ema_counts: ``(K,)`` float32, changed.
        ema_sums: ``(K, C)`` float32, changed.
        chosen_counts: ``(K,)`` float32, changed: moving counts of what the data chose, 0 after a restart.
        counts: ``(K,)`` rows of the batch per code.
        candidates: ``(K, C)`` float32; a row with a NaN is no candidate, and its code stays as it is.
        decay: of the moving statistics.
        revive: see above.
        revive_by: see above.
        scale: what debiased statistics are multiplied by before they are compared.

    Returns:
        How many codes restarted, int64 scalar.
    """
    rows = counts.sum()
    seen = ema_counts * scale  # debiased averages start at zero: raw, all codes would be dead at first
    weight = torch.minimum(seen.sum(), rows.float()) / len(seen)
    weight = weight if revive_by == "share" else torch.ones_like(weight)
    restart = (rows > 0) & (seen < revive * weight) & torch.isfinite(candidates).all(dim=1)
    # In rows the references restart with a count of 1 whether or not their averages are debiased.
    count = weight / scale if revive_by == "share" else weight
    ema_counts.copy_(torch.where(restart, count, ema_counts))
    ema_sums.copy_(torch.where(restart[:, None], count * candidates, ema_sums))
    codebook.copy_(torch.where(restart[:, None], candidates, codebook))
    chosen = torch.where(rows > 0, decay * chosen_counts + (1 - decay) * counts.float(), chosen_counts)
    chosen_counts.copy_(torch.where(restart, 0.0, chosen))
    return restart.sum()


def restart_rows(
    features: Tensor,
    mask: Tensor | None,
    num_updates: Tensor,
    num_codes: int,
    group: str | None,
    by_rank: bool = False,
) -> Tensor:
    """Return a row of the batch for each code, ``(K, C)`` float32; NaN for a masked or non-finite row.

    Code ``k`` gets row ``floor(N * frac((t K + k) * golden ratio))`` at update ``t``: a low-discrepancy
    sequence, so the codes of one step restart at places spread over the batch, and later steps visit others.
    All shapes are fixed and nothing is read back to the host.

    Args:
        features: ``(B, C, P, Q)``.
        mask: ``(N,)`` bool or None.
        num_updates: int64 scalar t.
        num_codes: K.
        group: name of the process group, or None. With ranks the result must be summed over them: each
            contributes the rows that it owns and zeros for the others.
        by_rank: False counts rows over the batches of all ranks, concatenated in rank order, for which every
            rank must tell its number of rows. True deals the codes out to the ranks in turn, and needs no
            communication.
    """
    device = features.device
    batch, channels, height, width = features.shape
    length = batch * height * width
    first: Tensor | int = 0
    total: Tensor | int = length
    if group is not None and not by_rank:
        rank, ranks = distributed.rank_and_size(group)
        own_length = torch.full((), length, dtype=torch.int64, device=device)
        lengths = distributed.gather_over_ranks(own_length, group, ranks)
        first, total = lengths[:rank].sum(), lengths.sum()
    codes = torch.arange(num_codes, device=device)
    # The fraction in 30 bits of fixed point, so that its product with the number of rows stays in int64. It
    # wraps around like frac(), and integers give the same rows on every device, which floats would not.
    fraction = ((num_updates * num_codes + codes) * _GOLDEN_32 & 0xFFFFFFFF) >> 2
    rows = (fraction * total >> 30) - first
    if length == 0:
        values = torch.full((num_codes, channels), float("nan"), dtype=torch.float32, device=device)
    else:
        inside = rows.clamp(0, length - 1)
        values = pick_rows(features, inside)
        usable = torch.isfinite(values).all(dim=1)
        usable = usable if mask is None else usable & mask[inside]
        values = torch.where(usable[:, None], values, float("nan"))
    if group is None:
        return values
    # Summed over the ranks: the owner's row (or NaN) plus zeros.
    owned = _dealt_out(num_codes, num_updates, group) if by_rank else (rows >= 0) & (rows < length)
    return torch.where(owned[:, None], values, 0.0)


def no_restart_rows(codebook: Tensor, num_updates: Tensor, group: str | None) -> Tensor:
    """Return what a rank without rows contributes under ``by_rank``: NaN for its codes, else 0."""
    nothing = torch.full_like(codebook, float("nan"))
    if group is None:
        return nothing
    return torch.where(_dealt_out(codebook.shape[0], num_updates, group)[:, None], nothing, 0.0)


def _dealt_out(num_codes: int, num_updates: Tensor, group: str) -> Tensor:
    """Return which codes this rank offers rows for, ``(K,)`` bool; the deal moves on with each update."""
    rank, ranks = distributed.rank_and_size(group)
    return (torch.arange(num_codes, device=num_updates.device) + num_updates) % ranks == rank
