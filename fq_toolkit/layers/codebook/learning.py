r"""How a dictionary moves: it starts from a batch, learns from batches, and commits what it has learned.

One update is, with counts and sums over all rows of all ranks,

.. math::

    n_k &\leftarrow \lambda n_k + (1 - \lambda) count_k, \qquad
    m_k \leftarrow \lambda m_k + (1 - \lambda) sum_k \\
    e_k &= m_k \Big/ \Big( \frac{n_k + \epsilon}{\sum n + K \epsilon} \sum n \Big)

("Feature Quantization Improves GAN Training", arXiv 2004.02088, equation 6; the smoothing is that of its
released code).  These are functions over a `MovingDictionary`, in the order in which a training forward comes
by: `catch_up`, `start`, `learn`, `commit`, `apply_statistics`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fq_toolkit.kernels import ops
from fq_toolkit.layers.codebook import distributed, initialization, ownership
from fq_toolkit.layers.codebook.dictionary import MovingDictionary
from fq_toolkit.layers.codebook.revival import no_restart_rows, restart_dead_codes_, restart_rows
from fq_toolkit.layers.codebook.statistics import BatchStatistics


def catch_up(layer: MovingDictionary, learning: bool) -> None:
    """Bring a dictionary up to date: with what others wrote, and with an update that is overdue.

    Args:
        layer: the dictionary.
        learning: whether this forward may change it.
    """
    ownership.notice_writes(layer, learning)
    staged = layer.staged
    if staged.coalesced and layer.training and (learning or staged.awaited) and layer.is_left_due():
        # A second lookup before the end of the model's forward, or after a forward that failed: the update
        # of the first comes before it, as in a single process.
        commit_staged([layer])


def start(layer: MovingDictionary, features: Tensor, rows: Tensor | None, learning: bool) -> None:
    """Start from the first batch, if that is how this dictionary starts.

    Waits for the device, but never again once the dictionary has started.

    Args:
        layer: the dictionary.
        features: ``(B, C, P, Q)``.
        rows: ``(N,)`` bool mask or None.
        learning: whether this forward may change the dictionary.
    """
    host = layer.host
    if host.started:
        return
    compiling = torch.compiler.is_compiling()
    if not compiling and layer.codebook.device.type != "meta":
        host.started = layer.has_started()  # another rank's state may have been broadcast
        if host.started:
            layer.initialized.fill_(True)
            return
    if not learning:
        if not compiling and (layer.codebook.is_meta or not ownership.is_given(layer)):
            host.warn_once(
                f'this FeatureQuantizer starts from data (init="{layer.init}") but has seen no training '
                "batch yet; it quantizes with a random dictionary until then"
            )
        return
    initialization.start_from_data_(
        layer.codebook,
        layer.ema_counts,
        layer.ema_sums,
        layer.center,
        layer.initialized,
        features.detach(),
        rows,
        layer.init == "kmeans",
        layer.metric == "cosine",
        distributed.group_name(layer.process_group),
    )
    # A batch without a usable row starts nothing, so eager code asks once more at the next one.  A graph
    # cannot ask: it takes the first batch for the start.
    host.started = True if compiling else bool(layer.initialized)
    ownership.written(layer)


def learn(
    layer: MovingDictionary,
    features: Tensor,
    rows: Tensor | None,
    loss: Tensor,
    counts: Tensor,
    sums: Tensor,
    *,
    lookups_per_row: int,
    learning: bool,
) -> None:
    """Count what a lookup skipped and, in training, move towards its batch now or later.

    Args:
        layer: the dictionary.
        features: ``(B, C, P, Q)``, detached.
        rows: ``(N,)`` bool mask or None.
        loss: ``(samples,)`` float32, detached.
        counts: ``(K,)`` int64.
        sums: ``(K, C)`` float32, detached; empty unless learning.
        lookups_per_row: how many lookups one row of the user's features makes: the number of heads.
        learning: whether this forward may change the dictionary.
    """
    batch, _, height, width = features.shape
    real = batch * height * width if rows is None else rows.sum()
    # Every real row that no code counts was not finite.  The difference is on the device: nothing waits.
    skipped = real - counts.sum()
    skipped = skipped if lookups_per_row == 1 else skipped // lookups_per_row
    gathered = BatchStatistics(counts, sums, skipped, loss, loss.shape[0])
    if not learning:
        layer.host.observe(gathered)
        layer.nonfinite_rows.add_(skipped)
        return
    candidates = _candidates(layer, features, rows)
    if not layer.staging:
        commit([layer], [gathered], [candidates])
        return
    layer.host.observe(gathered)
    layer.staged.add(layer.codebook, gathered, candidates)
    if layer.update_every > 1:
        layer.staged.forwards += 1
    if layer.update == "training" and not layer.waits_for_model() and layer.is_due():
        commit_staged([layer])


def _candidates(layer: MovingDictionary, features: Tensor, rows: Tensor | None) -> Tensor | None:
    """Return rows of this forward from which dead codes may restart, None if they never do."""
    if layer.revive <= 0:
        return None
    group = distributed.group_name(layer.process_group)
    # Manual commits let ranks run different numbers of forwards: a forward must not wait for other ranks.
    by_rank = layer.update == "manual"
    return restart_rows(features, rows, layer.num_updates, layer.num_codes, group, by_rank=by_rank)


def commit(
    layers: Sequence[MovingDictionary],
    statistics: Sequence[BatchStatistics],
    candidates: Sequence[Tensor | None],
) -> None:
    """Apply one batch of statistics to each layer, summed over the ranks in one all_reduce.

    Args:
        layers: the layers to update; layers of different process groups are summed group by group.
        statistics: what each has gathered on this rank, possibly nothing at all: every rank must take part.
        candidates: for each layer the rows from which dead codes may restart, ``(K, C)`` or None.
    """
    merged, restarts = list(statistics), list(candidates)
    groups: dict[str, list[int]] = {}
    for i, layer in enumerate(layers):
        group = distributed.group_name(layer.process_group)
        if group is not None:
            groups.setdefault(group, []).append(i)
    for group, members in groups.items():
        vectors = [statistics[i].flatten() for i in members]
        vectors += [rows for i in members if (rows := candidates[i]) is not None]
        summed = distributed.sum_together(vectors, group)
        rest = iter(summed[len(members) :])
        for i, vector in zip(members, summed[: len(members)], strict=True):
            merged[i] = statistics[i].unflatten(vector)
        for i in members:
            if candidates[i] is not None:
                restarts[i] = next(rest)
    for layer, batch, rows in zip(layers, merged, restarts, strict=True):
        apply_statistics(layer, batch, rows)


def commit_staged(layers: Sequence[MovingDictionary]) -> None:
    """Commit what the given layers have staged, and start them afresh."""
    commit(
        layers,
        [layer.staged.statistics(layer.codebook, layer.revive > 0) for layer in layers],
        [_staged_candidates(layer) for layer in layers],
    )
    for layer in layers:
        layer.staged.clear()


def _staged_candidates(layer: MovingDictionary) -> Tensor | None:
    """Return rows of the last staged forward for dead codes to restart from, None if they never do."""
    if layer.revive <= 0:
        return None
    if not layer.staged.pending:
        # Zeros would count as rows: a rank that staged nothing must say that it has none.
        return no_restart_rows(layer.codebook, layer.num_updates, distributed.group_name(layer.process_group))
    return layer.staged.rows


@torch.no_grad()
def apply_statistics(layer: MovingDictionary, batch: BatchStatistics, candidates: Tensor | None) -> None:
    r"""Move a dictionary by the statistics of a (global) batch: the update at the top of this module.

    The order matters: dead codes are judged by the counts after the update, the codes of ``metric="cosine"``
    are scaled after the restarts, and only then does the witness record what the layer has written.

    Args:
        layer: the dictionary.
        batch: the statistics, summed over all ranks.
        candidates: ``(K, C)``, the rows from which dead codes may restart, or None.
    """
    layer.nonfinite_rows.add_(batch.skipped)
    layer.host.observe(batch)
    # Nothing moves for a batch without a valid row, and no buffer is replaced: a CUDA graph holds them.
    ops.ema_commit_(
        layer.codebook,
        layer.ema_counts,
        layer.ema_sums,
        layer.center,
        layer.num_updates,
        batch.counts,
        batch.sums,
        layer.decay,
        layer.eps,
        layer.ema == "debiased",
    )
    if candidates is not None:
        layer.host.restarts = restart_dead_codes_(
            layer.codebook,
            layer.ema_counts,
            layer.ema_sums,
            layer.chosen_counts,
            batch.counts,
            candidates,
            decay=layer.decay,
            revive=layer.revive,
            revive_by=layer.revive_by,
            scale=ownership.debiasing_scale(layer),
        )
    if layer.metric == "cosine":
        moved = batch.counts.sum() > 0  # scaling again would change the last bits
        layer.codebook.copy_(torch.where(moved, F.normalize(layer.codebook, dim=1), layer.codebook))
    ownership.written(layer)
    if layer.host.counts_commits:
        layer.host.commits_now.add_(1)
