"""How a dictionary starts.

``"data"`` (the default)
    Distinct rows of the first training batch; counts 1, sums equal to the rows.
``"kmeans"``
    The same rows improved by a few Lloyd iterations; counts and sums of the last one.
``"normal"``
    As the releases of FQ-GAN: standard normal codes, counts 0, sums equal to the codes (0 with debiased
    averages). Unused codes jump far away in step 1, sweep back through the data and die at the origin.
``"uniform"``
    As vector-quantize-pytorch: uniform codes, counts 1, sums equal to the codes.

Rows are chosen by a fixed rule, not at random: runs repeat, ranks agree without sending a seed, and two ranks
choose what one process chooses from the concatenated batch.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor

from fq_toolkit.kernels import ops
from fq_toolkit.kernels.reference import widest
from fq_toolkit.layers.codebook import distributed
from fq_toolkit.layers.codebook.consistency import center_of

logger = logging.getLogger("fq_toolkit")

INITS = ("data", "kmeans", "normal", "uniform")
FROM_DATA = ("data", "kmeans")
LLOYD_ITERATIONS = 10
_GOLDEN = (math.sqrt(5) - 1) / 2


def start_values(
    init: str, num_codes: int, dim: int, debias: bool, device: torch.device | str | None
) -> tuple[Tensor, ...]:
    """Return codebook ``(K, C)``, moving counts ``(K,)`` and moving sums ``(K, C)`` before any data.

    For the starts that wait for data these are placeholders, looked up only if the layer runs before it
    trains.
    """
    device = torch.get_default_device() if device is None else device
    # A placeholder must not shift the random numbers of the network around it, so it draws from its own.
    generator = torch.Generator().manual_seed(0) if init in FROM_DATA else None
    source = "cpu" if generator else device
    codebook = torch.randn(num_codes, dim, generator=generator, dtype=torch.float32, device=source).to(device)
    counts, sums = codebook.new_zeros(num_codes), codebook.new_zeros(num_codes, dim)
    if init == "uniform":
        bound = math.sqrt(6 / (num_codes * dim))  # Kaiming's rule on an array (1, K, C)
        codebook = torch.empty_like(codebook).uniform_(-bound, bound)
        counts, sums = codebook.new_ones(num_codes), codebook.clone()
    elif init == "normal" and not debias:
        sums = codebook.clone()
    return codebook, counts, sums


def as_codebook(value: Any, num_codes: int, dim: int, unit: bool) -> Tensor:
    """Return a given dictionary as a float32 tensor of its own.

    Args:
        value: ``(K, C)``: a tensor, an array or nested lists.
        num_codes: K.
        dim: C.
        unit: scale the codes to unit length.

    Raises:
        TypeError: not real numbers.
        ValueError: another shape, entries that are not finite in float32, or a zero that needs a length.
    """
    try:
        given = value.detach() if isinstance(value, Tensor) else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"a codebook must be a (K, C) tensor or array, got {type(value).__name__}: {error}"
        ) from error
    if given.is_complex() or given.dtype == torch.bool or given.layout != torch.strided:
        raise TypeError(
            f"a codebook must be a dense tensor of real numbers, got {given.dtype}, {given.layout}"
        )
    if tuple(given.shape) != (num_codes, dim):
        hint = "; it is transposed" if tuple(given.shape) == (dim, num_codes) else ""
        raise ValueError(
            f"the codebook has shape {tuple(given.shape)}, but this dictionary has {num_codes} codes of dim "
            f"{dim}: ({num_codes}, {dim}){hint}"
        )
    codes = given.to(torch.float32, copy=True).contiguous()
    if codes.is_meta:
        return codes
    bad = ~torch.isfinite(codes).all(dim=1)
    if bool(bad.any()):
        raise ValueError(
            f"{int(bad.sum())} of {num_codes} codes are not finite in float32, the first is code "
            f"{int(bad.int().argmax())}; a dictionary needs finite codes"
        )
    if unit:
        if bool((codes == 0).all(dim=1).any()):
            raise ValueError('metric="cosine" needs codes with a direction, but some are zero')
        codes = torch.nn.functional.normalize(codes, dim=1)
    return codes


def is_given(codebook: Tensor, unit: bool) -> bool:
    """Return whether a codebook that waits for data is not its placeholder, so that somebody gave it."""
    placeholder = start_values("data", codebook.shape[0], codebook.shape[1], False, codebook.device)[0]
    if unit:
        placeholder = torch.nn.functional.normalize(placeholder, dim=1)
    # Averages and half precision leave it nearly what it was. Memory of zeros is no dictionary either.
    same = torch.allclose(codebook, placeholder, rtol=1e-2, atol=1e-2)
    blank = codebook.shape[0] > 1 and bool((codebook == codebook[0]).all())
    return not same and not blank and bool(torch.isfinite(codebook).all())


def spread_order(length: int) -> int:
    """Return a step near ``length`` times the golden ratio and coprime to it.

    With that step ``a``, ``j * a % length`` visits every row once, and any stretch of it is spread evenly:
    multiples of the golden ratio leave gaps of at most three lengths (the three-distance theorem).
    """
    step = max(1, round(length * _GOLDEN))
    while math.gcd(step, length) != 1:
        step += 1
    return step


def pick_rows(features: Tensor, rows: Tensor) -> Tensor:
    """Return rows of the canonical view as float32 vectors: ``(n,)`` indices to ``(n, C)``."""
    _, _, height, width = features.shape
    by_row = features.permute(0, 2, 3, 1)
    return by_row[rows // (height * width), (rows // width) % height, rows % width].float()


def usable_rows(features: Tensor, mask: Tensor | None) -> Tensor:
    """Return the indices of the rows that are real and finite in float32, ascending."""
    finite = torch.isfinite(features.float()).all(dim=1).reshape(-1)
    return (finite if mask is None else finite & mask).nonzero().squeeze(1)


class _GlobalRows:
    """The usable rows of all ranks as one list: rank after rank, as in the concatenated batch."""

    def __init__(self, features: Tensor, mask: Tensor | None, group: str | None) -> None:
        self.features, self.group = features, group
        self.local = usable_rows(features, mask)
        own = torch.tensor(self.local.numel(), device=features.device)  # collectives need it on the device
        if group is None:
            self.first, self.total = 0, self.local.numel()
        else:
            rank, ranks = distributed.rank_and_size(group)
            lengths = distributed.gather_over_ranks(own, group, ranks).tolist()
            self.first, self.total = sum(lengths[:rank]), sum(lengths)

    def pick(self, rows: Tensor) -> Tensor:
        """Return rows by their place in the global list; ranks that do not own one add zeros."""
        own = rows - self.first
        mine = (own >= 0) & (own < self.local.numel())
        shape, device = (rows.numel(), self.features.shape[1]), self.features.device
        values = torch.zeros(shape, dtype=torch.float32, device=device)
        values[mine] = pick_rows(self.features, self.local[own[mine]])
        if self.group is not None:
            distributed.sum_over_ranks_(values, self.group)
        return values

    def mean(self) -> Tensor:
        """Return the mean of all rows."""
        channels = self.features.shape[1]
        wide = widest(self.features.device)
        total = torch.zeros(channels, dtype=wide, device=self.features.device)
        # In parts, as a wide copy of all rows would take more memory than the features.
        for part in self.local.split(1 << 16):
            total += pick_rows(self.features, part).to(wide).sum(dim=0)
        if self.group is not None:
            distributed.sum_over_ranks_(total, self.group)
        return (total / self.total).float()


def _first_distinct(rows: Tensor) -> Tensor:
    """Return the rows without repetitions, in order of first appearance."""
    unique, inverse = torch.unique(rows, dim=0, return_inverse=True)
    first = torch.full((unique.shape[0],), rows.shape[0], device=rows.device)
    first = first.scatter_reduce(0, inverse, torch.arange(rows.shape[0], device=rows.device), "amin")
    return rows[first.sort().values]


def distinct_rows(rows: _GlobalRows, num_codes: int) -> Tensor:
    """Return ``(K, C)`` distinct rows, spread over the batch; fewer distinct rows than K repeat in turn."""
    step, stretch = spread_order(rows.total), max(4 * num_codes, 1024)
    device = rows.features.device
    chosen = torch.zeros(0, rows.features.shape[1], dtype=torch.float32, device=device)
    for start in range(0, rows.total, stretch):
        places = torch.arange(start, min(start + stretch, rows.total), device=device)
        chosen = _first_distinct(torch.cat([chosen, rows.pick(places * step % rows.total)]))[:num_codes]
        if chosen.shape[0] == num_codes:
            return chosen
    logger.warning(
        "the first batch has %d distinct feature vectors for a dictionary of %d codes; they are repeated",
        chosen.shape[0], num_codes,
    )  # fmt: skip
    return chosen[torch.arange(num_codes, device=chosen.device) % chosen.shape[0]]


def _lloyd(
    features: Tensor, mask: Tensor | None, codes: Tensor, center: Tensor, unit: bool, group: str | None
) -> tuple[Tensor, ...]:
    """Run Lloyd iterations from ``codes``: return new codes, counts and sums. An empty code stays put."""
    wide = widest(codes.device)
    exact = wide == torch.float64
    for _ in range(LLOYD_ITERATIONS):
        _, _, _, counts, sums = ops.quantize_forward(features, codes, center, mask, 1.0, False, True, exact)
        if group is not None:
            sums, batch_counts = distributed.sum_together([sums.to(wide), counts.to(wide)], group)
        else:
            batch_counts = counts.to(wide)
        hit = batch_counts > 0
        means = (sums / batch_counts.clamp(min=1)[:, None]).float()
        means = torch.nn.functional.normalize(means, dim=1) if unit else means
        codes = torch.where(hit[:, None], means, codes)
    counts = batch_counts.clamp(min=1).float()
    return codes, counts, codes * counts[:, None]


@torch.library.custom_op(
    "fq_toolkit::start_from_data_",
    mutates_args=("codebook", "ema_counts", "ema_sums", "center", "initialized"),
)
def start_from_data_(
    codebook: Tensor,
    ema_counts: Tensor,
    ema_sums: Tensor,
    center: Tensor,
    initialized: Tensor,
    features: Tensor,
    mask: Tensor | None,
    kmeans: bool,
    unit: bool,
    group: str | None,
) -> None:
    """Start the dictionary from the first training batch, in place, unless it has started or has codes.

    Args:
        codebook: ``(K, C)`` float32, changed.
        ema_counts: ``(K,)`` float32, changed.
        ema_sums: ``(K, C)`` float32, changed.
        center: ``(C,)`` float32, changed: mean of the usable rows.
        initialized: bool scalar, changed; stays False when no rank has a usable row.
        features: ``(B, C, P, Q)``.
        mask: ``(N,)`` bool or None.
        kmeans: improve the rows by Lloyd iterations.
        unit: features are unit vectors, and so are the codes.
        group: name of the process group to share rows with, or None.
    """
    if bool(initialized) or bool((ema_counts > 0).any()):  # an averaged copy may bring only floats
        initialized.fill_(True)
        return
    if is_given(codebook, unit):
        ema_counts.fill_(1)
        ema_sums.copy_(codebook)
        center.copy_(center_of(codebook))
        initialized.fill_(True)
        return
    rows = _GlobalRows(features, mask, group)
    if rows.total == 0:
        return
    codes = distinct_rows(rows, codebook.shape[0])
    center.copy_(rows.mean())
    counts, sums = torch.ones_like(ema_counts), codes
    if kmeans:
        codes, counts, sums = _lloyd(features, mask, codes, center, unit, group)
    codebook.copy_(codes)
    ema_counts.copy_(counts)
    ema_sums.copy_(sums)
    initialized.fill_(True)


@start_from_data_.register_fake
def _(
    codebook: Tensor,
    ema_counts: Tensor,
    ema_sums: Tensor,
    center: Tensor,
    initialized: Tensor,
    features: Tensor,
    mask: Tensor | None,
    kmeans: bool,
    unit: bool,
    group: str | None,
) -> None:
    return None
