"""The dictionary of a quantizer: how it starts, learns from batches and reports on itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fq_toolkit.kernels import ops, tracing
from fq_toolkit.layers.checks import at_least_one, between, one_of
from fq_toolkit.layers.codebook import distributed, initialization
from fq_toolkit.layers.codebook.host_state import HostMemory
from fq_toolkit.layers.codebook.ownership import OwnedCodebook
from fq_toolkit.layers.codebook.revival import check_threshold, restart_dead_codes_, restart_rows
from fq_toolkit.layers.codebook.statistics import BatchStatistics, perplexity
from fq_toolkit.layers.quantizer import checkpointing, updates
from fq_toolkit.layers.quantizer.checkpointing import Dictionary
from fq_toolkit.layers.quantizer.commitment import batch_mean
from fq_toolkit.layers.quantizer.presets import Preset
from fq_toolkit.layers.quantizer.strength import Schedule, ask, scheduled_strength

#: A code whose moving count is below this (or below the threshold of ``revive``) counts as dead in reports.
DEAD_COUNT = 0.01


class MovingDictionary(OwnedCodebook):
    """K centroids that follow the features by moving averages; `FeatureQuantizer` documents its settings."""

    lookups_per_row: int = 1
    _schedule: Schedule | None = None
    _strength: float = 1.0
    _strength_tensor: Tensor | None = None

    def __init__(
        self,
        num_codes: int,
        codebook_dim: int,
        settings: Preset,
        *,
        given: Any,
        strength: float | Callable[[int], float],
        metric: str,
        update: str,
        update_every: int,
        process_group: Any,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        self.num_codes = at_least_one("num_codes", num_codes)
        self.codebook_dim = at_least_one("codebook_dim", codebook_dim)
        self.decay = between("decay", settings.decay, 0, 1, open_above=True)
        self.commitment = between("commitment", settings.commitment, 0, float("inf"))
        self.eps = between("eps", settings.eps, 0, float("inf"))
        self.ema = one_of("ema", settings.ema, ("smoothed", "debiased"))
        self.init = "given" if given is not None else one_of("init", settings.init, initialization.INITS)
        self.revive_by = one_of("revive_by", settings.revive_by, ("share", "count"))
        self.revive = check_threshold(settings.revive, self.revive_by)
        self.strength = strength
        self.metric = one_of("metric", metric, ("euclidean", "cosine"))
        self.update = one_of("update", update, ("training", "manual"))
        self.update_every = at_least_one("update_every", update_every)
        if update == "manual" and update_every != 1:
            raise ValueError(
                'update_every counts training forwards; with update="manual" call commit_updates instead'
            )
        self.process_group = distributed.ProcessGroupReference(process_group)
        self.memory = HostMemory()

        codebook = torch.empty(num_codes, codebook_dim, dtype=torch.float32, device=device)
        self.register_buffer("codebook", codebook)
        self.register_buffer("ema_counts", codebook.new_empty(num_codes))
        self.register_buffer("ema_sums", torch.empty_like(codebook))
        if self.revive > 0:
            self.register_buffer("chosen_counts", codebook.new_empty(num_codes))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("initialized", torch.tensor(False, device=device))
        self.center = codebook.new_empty(codebook_dim)
        self.nonfinite_rows = torch.zeros((), dtype=torch.int64, device=device)
        self._given = None
        if given is not None:
            self._given = initialization.as_codebook(given, num_codes, codebook_dim, metric == "cosine")
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start afresh: what ``to_empty`` leaves, on a model built on the meta device, is no dictionary."""
        if self._given is None:
            codebook, counts, sums = initialization.start_values(
                self.init, self.num_codes, self.codebook_dim, self.ema == "debiased", self.codebook.device
            )
            codebook = F.normalize(codebook, dim=1) if self.metric == "cosine" else codebook
        else:
            codebook, counts, sums = self._given, torch.ones_like(self.ema_counts), self._given
        for own, value in ((self.codebook, codebook), (self.ema_counts, counts), (self.ema_sums, sums)):
            own.copy_(value)
        self._put_on_one_device()
        if self.revive > 0:
            self.chosen_counts.zero_()
        self.num_updates.zero_()
        self.nonfinite_rows.zero_()
        self.memory.commits_now.zero_()
        if self.staging:
            self.make_room_to_stage()
        self.clear_staged()
        self.initialized.fill_(self.init not in initialization.FROM_DATA)
        self._trust(started=False)

    # --- what a forward asks for ----------------------------------------------------------------------------

    def may_learn(self, task: int | None) -> bool:
        """Whether a forward moves the dictionary; ``task`` is the backward pass that repeats it, if any."""
        held = self.codebook_frozen or self.frozen_depth > 0
        return self.training and not held and task is None and not tracing.under_export()

    def start(self, features: Tensor, rows: Tensor | None, learning: bool) -> None:
        """Start from the first batch, if that is how this dictionary starts.

        Waits for the device, but never again once the dictionary has started.

        Args:
            features: ``(B, C, P, Q)``.
            rows: ``(N,)`` bool mask or None.
            learning: whether this forward may change the dictionary.
        """
        compiling = torch.compiler.is_compiling()
        if self.memory.started:
            return
        if not compiling and self.codebook.device.type != "meta":
            self.memory.started = self.has_started()  # another rank's state may have been broadcast
            if self.memory.started:
                self.initialized.fill_(True)
                return
        if not learning:
            if not compiling and (self.codebook.is_meta or not self.is_given()):
                self.memory.warn_once(
                    f'this FeatureQuantizer starts from data (init="{self.init}") but has seen no training '
                    "batch yet; it quantizes with a random dictionary until then"
                )
            return
        initialization.start_from_data_(
            self.codebook,
            self.ema_counts,
            self.ema_sums,
            self.center,
            self.initialized,
            features.detach(),
            rows,
            self.init == "kmeans",
            self.metric == "cosine",
            distributed.group_name(self.process_group),
        )
        self.memory.started = True if compiling else bool(self.initialized)
        self.written()

    def consult(self, needs_grad: bool, task: int | None, in_band: bool) -> Dictionary:
        """The dictionary that a forward must see.

        Args:
            needs_grad: whether there will be a backward pass.
            task: identity of the backward pass in which this forward is a repetition, or None.
            in_band: whether the loss is returned rather than recorded.
        """
        if task is not None:
            repeated = checkpointing.recall(self, task)
            if repeated is not None:
                return repeated
            if self.training:
                self.memory.warn_once(
                    "a FeatureQuantizer runs inside a backward pass, as in gradient checkpointing, but no "
                    "forward is known that it would repeat: it sees the dictionary of now, so that gradients "
                    "are those of another forward"
                )
        if self.codebook.dtype != torch.float32:
            self.keep_float32()
        codebook, center = self.codebook, self.usable_center()
        eager = not torch.compiler.is_compiling()
        strength = self._strength_now()
        # In evaluation too: a training forward may come before the backward pass.
        differentiated = self.training or torch.is_grad_enabled()
        checkpointed = eager and differentiated and task is None and checkpointing.may_be_checkpointed()
        if needs_grad:
            codebook = codebook.clone()  # the backward pass needs the dictionary as it was
        if checkpointed:
            lost = checkpointing.remember(self, codebook, center, strength)
            if lost and not in_band and self.commitment > 0:
                self.memory.warn_once(
                    "a FeatureQuantizer runs inside a checkpoint with use_reentrant=True, which cannot carry "
                    "its commitment loss; use use_reentrant=False, or return layer.quantize(x).loss from the "
                    "region"
                )
        return Dictionary(codebook, center, strength)

    @property
    def strength(self) -> float | Callable[[int], float]:
        """How far the output goes towards the centroids: a number in [0, 1] or a schedule; may be set."""
        return self._strength if self._schedule is None else self._schedule.function

    @strength.setter
    def strength(self, value: float | Callable[[int], float]) -> None:
        if callable(value):
            self._schedule, self._strength = Schedule(value), 1.0
            return
        self._schedule, self._strength = None, between("strength", value, 0, 1)
        # Full strength, which hardly anybody ever changes, needs no tensor. Once there is one it stays, so
        # that a warm-up that is set from outside compiles nothing when it ends.
        if self._strength_tensor is None and self._strength != 1:
            self._strength_tensor = torch.empty((), dtype=torch.float64, device="cpu")
        if self._strength_tensor is not None:
            self._strength_tensor.fill_(self._strength)

    def _strength_now(self) -> float | Tensor:
        """The strength of this forward: a tensor where a graph is compiled, which a number would bind."""
        exporting = tracing.under_export()
        if torch.compiler.is_compiling() and not exporting:
            if self._schedule is not None:
                return scheduled_strength(self.memory.commits_now, self._schedule.key)
            return 1.0 if self._strength_tensor is None else self._strength_tensor
        if self._schedule is None:
            return self._strength
        # An averaged copy of a model gets its buffers from elsewhere: outside training they are asked.
        buffers = not self.training and not self.num_updates.is_meta
        buffers = buffers and not tracing.under_transform() and not exporting
        return ask(self._schedule.function, int(self.num_updates) if buffers else self.memory.commits)

    def learn(
        self,
        features: Tensor,
        rows: Tensor | None,
        loss: Tensor,
        counts: Tensor,
        sums: Tensor,
        learning: bool,
    ) -> None:
        """Count what a lookup skipped and, in training, move towards its batch now or later.

        Args:
            features: ``(B, C, P, Q)``, detached.
            rows: ``(N,)`` bool mask or None.
            loss: ``(samples,)`` float32, detached.
            counts: ``(K,)`` int64.
            sums: ``(K, C)`` float32, detached; empty unless learning.
            learning: whether this forward may change the dictionary.
        """
        batch, _, height, width = features.shape
        real = batch * height * width if rows is None else rows.sum()
        skipped = real - counts.sum()
        skipped = skipped if self.lookups_per_row == 1 else skipped // self.lookups_per_row
        gathered = BatchStatistics(counts, sums, skipped, loss, loss.shape[0])
        if not learning:
            self.memory.observe(gathered)
            self.nonfinite_rows.add_(gathered.skipped)
            return
        candidates = self._candidates(features, rows)
        if not self.staging:
            updates.commit([self], [gathered], [candidates])
            return
        self.memory.observe(gathered)
        self.stage(gathered, candidates)
        if self.update == "training" and not self.waits_for_model() and self.is_due():
            updates.commit_staged([self])

    def _candidates(self, features: Tensor, rows: Tensor | None) -> Tensor | None:
        if self.revive <= 0:
            return None
        group = distributed.group_name(self.process_group)
        # Manual commits let ranks run different numbers of forwards: a forward must not wait for other ranks.
        by_rank = self.update == "manual"
        return restart_rows(features, rows, self.num_updates, self.num_codes, group, by_rank=by_rank)

    @torch.no_grad()
    def apply_statistics(self, batch: BatchStatistics, candidates: Tensor | None) -> None:
        """Move by the statistics of a (global) batch; dead codes may restart from the candidates."""
        self.nonfinite_rows.add_(batch.skipped)
        self.memory.observe(batch)
        ops.ema_commit_(
            self.codebook,
            self.ema_counts,
            self.ema_sums,
            self.center,
            self.num_updates,
            batch.counts,
            batch.sums,
            self.decay,
            self.eps,
            self.ema == "debiased",
        )
        if candidates is not None:
            self.memory.restarts = restart_dead_codes_(
                self.codebook,
                self.ema_counts,
                self.ema_sums,
                self.chosen_counts,
                batch.counts,
                candidates,
                decay=self.decay,
                revive=self.revive,
                revive_by=self.revive_by,
                scale=self.debiasing_scale(),
            )
        if self.metric == "cosine":
            moved = batch.counts.sum() > 0  # scaling again would change the last bits
            self.codebook.copy_(torch.where(moved, F.normalize(self.codebook, dim=1), self.codebook))
        self.written()
        if self._schedule is not None:
            self.memory.commits_now.add_(1)

    def translate(self, state: Mapping[str, Any], prefix: str) -> Mapping[str, Any]:
        """Take a state that was saved with ``revive`` without it, and the other way round."""
        name, counts = prefix + "chosen_counts", prefix + "ema_counts"
        if self.revive > 0 and name not in state and counts in state:
            return {**state, name: state[counts]}
        if self.revive == 0 and name in state:
            return {key: value for key, value in state.items() if key != name}
        return state

    # --- reports; these wait for the device -----------------------------------------------------------------

    def usage(self, *, moving: bool = True) -> float:
        """Share of the codes in use, in [0, 1]: by the moving counts, or hit by the last batch.

        A code counts by what the data chose: where a restart has put it is no use yet.
        """
        if moving:
            return 1 - self.dead_codes() / self.num_codes
        return 0.0 if self.memory.counts is None else (self.memory.counts > 0).float().mean().item()

    def perplexity(self, *, moving: bool = True) -> float:
        """``exp(-sum p log(p + 1e-10))`` of the moving counts, or of the last batch; 0 without any count."""
        counts = self.data_counts() if moving else self.memory.counts
        return 0.0 if counts is None or not bool(counts.sum() > 0) else perplexity(counts).item()

    def dead_codes(self) -> int:
        """Number of codes whose moving count is below 0.01, or below the threshold of ``revive`` if higher.

        Counted since the last restart of the code, as in `usage`.
        """
        threshold = max(DEAD_COUNT, self.revive)
        if self.revive_by == "share":
            threshold = max(DEAD_COUNT, self.revive * float(self.ema_counts.mean()))
        return int((self.data_counts() < threshold).sum())

    def restarts(self) -> int:
        """Number of codes that restarted at the last update."""
        return 0 if self.memory.restarts is None else int(self.memory.restarts)

    def data_counts(self) -> Tensor:
        """Moving counts of the rows that chose each code, ``(K,)``, without what restarts put there."""
        return self.chosen_counts if self.revive > 0 else self.ema_counts

    def last_loss(self) -> float | None:
        """Mean commitment loss of the last forward (over all ranks, if it committed); None before any."""
        if self.memory.loss is None:
            return None
        return batch_mean(self.memory.loss, self.memory.samples).item()
