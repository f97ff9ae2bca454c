"""FeatureQuantizer: a dictionary lookup as a layer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from fq_toolkit.kernels import ops
from fq_toolkit.layers import checkpointing, distributed, initialization, updates
from fq_toolkit.layers.checkpointing import Dictionary
from fq_toolkit.layers.commitment import CommitmentLedger, batch_mean
from fq_toolkit.layers.layout import FeatureLayout, check_features, from_canonical, row_mask, to_canonical
from fq_toolkit.layers.presets import find_preset
from fq_toolkit.layers.references import lucidrains_state, released_state
from fq_toolkit.layers.revival import no_restart_rows, restart_rows
from fq_toolkit.layers.rotation import rotate_gradient
from fq_toolkit.layers.state import check_state
from fq_toolkit.layers.statistics import BatchStatistics, perplexity

MODES = ("straight_through", "regularize", "rotation")
#: A code whose moving count is below this (or below ``revive``) counts as dead in reports.
DEAD_COUNT = 0.01


class QuantizerOutput(NamedTuple):
    """What a lookup returns.

    Attributes:
        quantized: like the features.
        indices: int64, the features' shape without the channel axis (plus an axis of heads or levels, if
            several); -1 for masked rows and rows that are not finite.
        loss: ``(B,)`` float32, the commitment loss of each sample.
        perplexity: scalar float32, ``exp(-sum p log(p + 1e-10))`` of this batch's codes (``(levels,)`` if
            several).
    """

    quantized: Tensor
    indices: Tensor
    loss: Tensor
    perplexity: Tensor


class _Lookup(NamedTuple):
    """One forward before it is shaped for the user."""

    quantized: Tensor
    loss: Tensor
    indices: Tensor
    counts: Tensor
    recomputed: bool


class FeatureQuantizer(nn.Module):
    r"""Replace every feature vector by its nearest centroid; the dictionary follows by moving averages.

    For features :math:`x_n` and a dictionary :math:`E` of K centroids,

    .. math::

        i(n) &= \arg\min_k |x_n - e_k|^2 \quad \text{(lowest index on ties)}, \qquad q_n = e_{i(n)} \\
        loss_b &= \beta \, \mathrm{mean}_{c, p} (\mathrm{sg}(q) - x)^2 \\
        n_k &\leftarrow \lambda n_k + (1 - \lambda) count_k, \qquad m_k \leftarrow \lambda m_k + (1 - \lambda) sum_k \\
        e_k &= m_k \Big/ \Big( \frac{n_k + \epsilon}{\sum n + K \epsilon} \sum n \Big)

    The gradient passes straight through: :math:`dx = g_{out} + g_{loss} \, 2 \beta (x - q) / (C \cdot positions)`.
    The loss is kept until `commitment_loss` reads it.  Outputs and gradients use the dictionary from before
    the update of the same call.

    Rows with a NaN or an infinity pass unchanged, carry no loss, do not touch the dictionary and are counted
    in ``nonfinite_rows``.  The state is float32 whatever the dtype of the model, and results repeat bit for
    bit.

    Args:
        dim: number of channels C of the features.
        num_codes: number of centroids K.
        mode: "straight_through" sends the centroids forward (the paper); "regularize" returns the features
            untouched, so that only the loss acts (the released discriminators); "rotation" sends the
            centroids forward and rotates and rescales the gradient.
        strength: blends the output as ``x + strength * (q - x)``: a number in [0, 1] or a function of the
            number of updates so far, for a warm-up.
        decay: :math:`\lambda` in [0, 1); 0.9.
        commitment: :math:`\beta`; 0.25.
        eps: :math:`\epsilon`; 1e-5.
        ema: "smoothed" as above; "debiased" divides the moving statistics by :math:`1 - \lambda^t` before
            forming E.
        init: "data", "kmeans", "normal" or "uniform"; see `fq_toolkit.layers.initialization`.
        revive: a code whose moving count falls below this restarts from a row of the batch, with fresh
            statistics; 0 never restarts one.
        update: "training" moves the dictionary in every training forward; "manual" stages the statistics for
            `commit_updates`.
        update_every: with "training", stage the statistics and commit them once every so many training
            forwards: 4 forwards of 8 samples are then one update of 32.
        precision: "exact" returns the argmin of float64 distances; "fast" the best score of one float32 pass.
        channel_dim: channel axis of the features; None for axis 1 of ``(B, C)`` and maps, the last of ``(B,
            L, C)``.
        nonfinite: "skip" as above; "raise" raises instead, which makes every forward wait for the device.
        heads: split the channels into so many parts that share the dictionary and are looked up separately.
        codebook_dim: project each head to this many channels before the lookup, and back after it.
        metric: "euclidean"; "cosine" looks up unit vectors in a dictionary of unit vectors.
        preset: "fqgan", "fqgan-tf" or "lucidrains" set what is not given here as those references do.
        process_group: ranks to share the dictionary with; None for all, as they are when the layer runs.
        device: where to create the state.

    Shape:
        ``(B, C)``, ``(B, L, C)``, ``(B, C, H, W)``, ``(B, C, D, H, W)`` or, with ``channel_dim``, others; any
        strides, float16 to float64. The output has the input's shape and dtype.

    Attributes:
        codebook: ``(K, C)`` float32.
        ema_counts: ``(K,)`` float32, moving counts n.
        ema_sums: ``(K, C)`` float32, moving sums m.
        num_updates: int64, updates so far.
        initialized: bool, whether the dictionary has started.
        nonfinite_rows: int64, rows skipped so far; not saved.

    Raises:
        ValueError: a setting outside its range, or an unknown name.
        TypeError: ``dim`` or ``num_codes`` not an integer.

    Example:
        >>> import torch
        >>> from fq_toolkit import FeatureQuantizer
        >>> layer = FeatureQuantizer(64, 256)
        >>> layer(torch.randn(8, 64, 16, 16)).shape
        torch.Size([8, 64, 16, 16])
        >>> out = layer.quantize(torch.randn(8, 64, 16, 16))
        >>> out.indices.shape, out.loss.shape
        (torch.Size([8, 16, 16]), torch.Size([8]))

    Source: "Feature Quantization Improves GAN Training", arXiv 2004.02088, section 3, and its released code.
    """

    codebook: Tensor
    ema_counts: Tensor
    ema_sums: Tensor
    num_updates: Tensor
    initialized: Tensor
    center: Tensor
    nonfinite_rows: Tensor
    staged_counts: Tensor
    staged_sums: Tensor
    staged_skipped: Tensor
    staged_samples: Tensor
    staged_loss: Tensor
    staged_rows: Tensor

    def __init__(
        self,
        dim: int,
        num_codes: int,
        *,
        mode: str | None = None,
        strength: float | Callable[[int], float] = 1.0,
        decay: float | None = None,
        commitment: float | None = None,
        eps: float | None = None,
        ema: str | None = None,
        init: str | None = None,
        revive: float | None = None,
        update: str = "training",
        update_every: int = 1,
        precision: str = "exact",
        channel_dim: int | None = None,
        nonfinite: str = "skip",
        heads: int = 1,
        codebook_dim: int | None = None,
        metric: str = "euclidean",
        preset: str | None = None,
        process_group: Any = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        chosen = find_preset(preset)
        self.dim = _at_least_one("dim", dim)
        self.num_codes = _at_least_one("num_codes", num_codes)
        self.heads = _at_least_one("heads", heads)
        if codebook_dim is None and dim % heads:
            raise ValueError(
                f"dim={dim} cannot be split into heads={heads} equal parts; pass codebook_dim to project"
            )
        self.codebook_dim = _at_least_one(
            "codebook_dim", dim // heads if codebook_dim is None else codebook_dim
        )
        self.mode = _one_of("mode", chosen.mode if mode is None else mode, MODES)
        self.strength = strength if callable(strength) else _between("strength", strength, 0, 1)
        self.decay = _between("decay", chosen.decay if decay is None else decay, 0, 1, open_above=True)
        self.commitment = _between(
            "commitment", chosen.commitment if commitment is None else commitment, 0, math.inf
        )
        self.eps = _between("eps", chosen.eps if eps is None else eps, 0, math.inf)
        self.ema = _one_of("ema", chosen.ema if ema is None else ema, ("smoothed", "debiased"))
        self.init = _one_of("init", chosen.init if init is None else init, initialization.INITS)
        self.revive = _between("revive", chosen.revive if revive is None else revive, 0, math.inf)
        self.update = _one_of("update", update, ("training", "manual"))
        self.update_every = _at_least_one("update_every", update_every)
        self.precision = _one_of("precision", precision, ("exact", "fast"))
        self.channel_dim = channel_dim
        self.nonfinite = _one_of("nonfinite", nonfinite, ("skip", "raise"))
        self.metric = _one_of("metric", metric, ("euclidean", "cosine"))
        if update == "manual" and update_every != 1:
            raise ValueError(
                'update_every counts training forwards; with update="manual" call commit_updates instead'
            )

        self.process_group = distributed.ProcessGroupReference(process_group)
        self.ledger = CommitmentLedger()
        self.frozen_depth = 0
        self.coalesced = False
        self._memory = _Memory()

        # A projection is needed to change the number of channels, and only then.
        inner = heads * self.codebook_dim
        self.project_in = nn.Linear(dim, inner, device=device) if inner != dim else None
        sends_codes = self.mode != "regularize"  # otherwise nothing would ever train the way back
        self.project_out = nn.Linear(inner, dim, device=device) if inner != dim and sends_codes else None

        debias = self.ema == "debiased"
        codebook, counts, sums = initialization.start_values(
            self.init, num_codes, self.codebook_dim, debias, device
        )
        if metric == "cosine":
            codebook = F.normalize(codebook, dim=1)
        self.register_buffer("codebook", codebook)
        self.register_buffer("ema_counts", counts)
        self.register_buffer("ema_sums", sums)
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64, device=device))
        waits = self.init in initialization.FROM_DATA
        self.register_buffer("initialized", torch.tensor(not waits, device=device))
        self.register_buffer("center", codebook.mean(dim=0), persistent=False)
        self.register_buffer(
            "nonfinite_rows", torch.zeros((), dtype=torch.int64, device=device), persistent=False
        )
        self._memory.started = not waits
        if self.staging:
            self.make_room_to_stage()

    # --- forward --------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        """Quantize the features; the commitment loss goes to `commitment_loss`.

        Args:
            x: features, see the class.
            mask: bool, True for real positions: the shape of ``x`` without the channel axis. Masked positions
                pass unchanged, whatever they hold.
            lengths: ``(B,)`` integers, instead of a mask, for ``(B, L, C)``.

        Returns:
            Features like ``x``.

        Raises:
            TypeError: integer or complex features, a mask that is not boolean.
            ValueError: a wrong number of channels or a wrong mask shape; with ``nonfinite="raise"`` a row
                with a NaN or an infinity.
        """
        layout = check_features(x, self.dim, self.channel_dim)
        found = self._look_up(x, layout, row_mask(mask, lengths, x.shape[0], layout, x.device), in_band=False)
        if found.loss.requires_grad and not found.recomputed and not torch.compiler.is_exporting():
            self.ledger.record(found.loss)
        return found.quantized

    def quantize(
        self, x: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None
    ) -> QuantizerOutput:
        """Quantize the features and return all there is to know; `commitment_loss` does not see this call.

        Args:
            x: features, see the class.
            mask: as in `forward`.
            lengths: as in `forward`.

        Returns:
            `QuantizerOutput`; add the mean of its loss to yours.

        Raises:
            TypeError: as `forward`.
            ValueError: as `forward`.
        """
        layout = check_features(x, self.dim, self.channel_dim)
        found = self._look_up(x, layout, row_mask(mask, lengths, x.shape[0], layout, x.device), in_band=True)
        indices = found.indices.clamp(min=-1).to(torch.int64)
        if self.heads > 1:
            indices = (
                rearrange(indices, "(b h n) -> b n h", b=x.shape[0], h=self.heads)
                if indices.numel()
                else indices
            )
            indices = indices.reshape(x.shape[0], *layout.positions, self.heads)
        else:
            indices = indices.view(x.shape[0], *layout.positions)
        return QuantizerOutput(found.quantized, indices, found.loss, perplexity(found.counts))

    def decode(self, indices: Tensor) -> Tensor:
        """Turn indices back into features: what `quantize` returned as ``quantized`` for them.

        Args:
            indices: integers as `quantize` returned them; -1 gives zeros.

        Returns:
            Float32 features in the layout of the layer's input.

        Raises:
            TypeError: indices that are not integers.
            ValueError: an index outside the dictionary (checked on the CPU), or a wrong axis of heads.
        """
        if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
            raise TypeError(f"indices must be integers, got {indices.dtype}")
        if self.heads > 1 and (indices.ndim < 2 or indices.shape[-1] != self.heads):
            raise ValueError(
                f"indices must end with an axis of {self.heads} heads, got shape {tuple(indices.shape)}"
            )
        if indices.device.type == "cpu" and indices.numel() and not torch.compiler.is_compiling():
            low, high = (int(value) for value in indices.aminmax())
            if low < -1 or high >= self.num_codes:
                raise ValueError(
                    f"indices run from {low} to {high}; this dictionary has codes 0 to {self.num_codes - 1}"
                )
        valid = (indices >= 0)[..., None]
        codes = self.codebook[indices.clamp(min=0).long()]
        if self.heads > 1:
            valid, codes = valid.all(dim=-2), codes.flatten(-2)
        if self.project_out is not None:
            codes = self.project_out(codes)
        elif self.project_in is not None:
            raise ValueError(
                'mode="regularize" has no projection back from codebook_dim, so there is nothing to decode'
            )
        codes = torch.where(valid, codes, torch.zeros_like(codes))
        ndim = codes.ndim
        axis = self.channel_dim % ndim if self.channel_dim is not None else (2 if ndim == 3 else 1)
        return codes.movedim(-1, axis)

    def _look_up(self, x: Tensor, layout: FeatureLayout, mask: Tensor | None, in_band: bool) -> _Lookup:
        """One lookup with everything that belongs to it: start, update, bookkeeping."""
        canonical = to_canonical(x, layout)
        if self.nonfinite == "raise":
            _refuse_nonfinite(canonical, mask)
        features, usable = self._encode(canonical, mask)
        rows = _repeat_for_heads(mask, x.shape[0], self.heads)
        eager = not torch.compiler.is_compiling()
        task = checkpointing.in_backward() if eager else None
        learning = (
            self.training and self.frozen_depth == 0 and task is None and not torch.compiler.is_exporting()
        )
        if not self._memory.started:
            self._start(features, rows, learning)
        dictionary = self._dictionary(features, task, in_band)

        with_output = self.mode != "regularize"
        out, indices, sq_error, counts, sums = ops.quantize_forward(
            features,
            dictionary.codebook,
            dictionary.center,
            rows,
            dictionary.strength,
            with_output,
            learning,
            self.precision == "exact",
        )
        loss = self._per_sample_loss(sq_error, mask, x.shape[0], canonical.shape[2] * canonical.shape[3])
        if task is None and not torch.compiler.is_exporting():
            self._learn(features, rows, loss.detach(), counts, sums.detach(), learning)
        if not with_output:
            return _Lookup(x, loss, indices, counts, task is not None)
        if self.mode == "rotation":
            batch, _, height, width = features.shape
            out = rotate_gradient(features, out, None if rows is None else rows.view(batch, 1, height, width))
        out = self._decode_features(out, canonical, usable)
        return _Lookup(from_canonical(out, layout), loss, indices, counts, task is not None)

    # --- between the user's features and those of the dictionary --------------------------------------------

    @property
    def _transforms(self) -> bool:
        return self.project_in is not None or self.metric == "cosine"

    def _encode(self, canonical: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Features ``(B h, codebook_dim, P, Q)`` to look up, and which rows may be transformed (None: not
        needed).

        Rows that are masked or not finite are not multiplied by a weight, or its gradient would be NaN as
        well; they enter the lookup as NaN, which leaves them alone there.
        """
        if not self._transforms:
            return _split_heads(canonical, self.heads), None
        batch, _, height, width = canonical.shape
        usable = torch.isfinite(canonical).all(dim=1, keepdim=True)
        if mask is not None:
            usable = usable & mask.view(batch, 1, height, width)
        features = torch.where(usable, canonical, torch.zeros_like(canonical))
        if self.project_in is not None:
            features = self.project_in(features.movedim(1, -1)).movedim(-1, 1)
        features = _split_heads(features, self.heads)
        if self.metric == "cosine":
            wide = torch.promote_types(features.dtype, torch.float32)
            features = F.normalize(features.to(wide), dim=1)
        blocked = ~usable if self.heads == 1 else (~usable).repeat_interleave(self.heads, dim=0)
        return features.masked_fill(blocked, float("nan")), usable

    def _decode_features(self, out: Tensor, canonical: Tensor, usable: Tensor | None) -> Tensor:
        """Undo `_encode` on quantized features; rows that were not usable are the user's own."""
        out = _join_heads(out, self.heads)
        if usable is None:
            return out
        if self.project_out is not None:
            out = torch.where(usable, out, torch.zeros_like(out))
            out = self.project_out(out.movedim(1, -1)).movedim(-1, 1)
        return torch.where(usable, out.to(canonical.dtype), canonical)

    def _per_sample_loss(self, sq_error: Tensor, mask: Tensor | None, batch: int, positions: Any) -> Tensor:
        """``(B,)``: the squared error over channels and real positions; 0 for a sample without any."""
        if self.heads > 1:
            sq_error = sq_error.view(batch, self.heads).sum(dim=1)
        channels = self.heads * self.codebook_dim
        if mask is None:
            return sq_error * (self.commitment / max(channels * positions, 1))
        real = mask.view(batch, -1).sum(dim=1).clamp(min=1)
        return sq_error * (self.commitment / channels) / real

    # --- the dictionary -------------------------------------------------------------------------------------

    def _dictionary(self, features: Tensor, task: int | None, in_band: bool) -> Dictionary:
        """The dictionary that this forward must see."""
        if task is not None:
            repeated = checkpointing.recall(self, task)
            if repeated is not None:
                return repeated
        self._keep_float32()
        codebook, center = self.codebook, self.center
        strength = float(self.strength(self._memory.commits)) if callable(self.strength) else self.strength
        eager = not torch.compiler.is_compiling()
        checkpointed = eager and self.training and task is None and checkpointing.may_be_checkpointed()
        needs_grad = torch.is_grad_enabled() and features.requires_grad
        if self.training and (needs_grad or checkpointed):
            codebook = codebook.clone()  # the backward pass needs the dictionary as it was
        if checkpointed:
            lost = checkpointing.remember(self, Dictionary(codebook, center.clone(), strength))
            if lost and not in_band and self.commitment > 0:
                self._memory.warn_once(
                    "a FeatureQuantizer runs inside a checkpoint with use_reentrant=True, which cannot carry its "
                    "commitment loss; use use_reentrant=False, or return the loss of layer.quantize(x) from the region"
                )
        return Dictionary(codebook, center, strength)

    def _start(self, features: Tensor, rows: Tensor | None, learning: bool) -> None:
        """Start the dictionary if that waits for data. Looks at the device, but never again once it has started."""
        compiling = torch.compiler.is_compiling()
        if not compiling and self.codebook.device.type != "meta":
            self._memory.started = bool(self.initialized)  # another rank's state may have been broadcast
        if self._memory.started:
            return
        if not learning:
            if not compiling:
                self._memory.warn_once(
                    f'this FeatureQuantizer starts from data (init="{self.init}") but has seen no training batch yet; '
                    "it quantizes with a random dictionary until then"
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
        self._memory.started = True if compiling else bool(self.initialized)

    def _learn(
        self,
        features: Tensor,
        rows: Tensor | None,
        loss: Tensor,
        counts: Tensor,
        sums: Tensor,
        learning: bool,
    ) -> None:
        """Count what was skipped and, in training, let the dictionary learn from the batch now or later."""
        batch, _, height, width = features.shape
        real = batch * height * width if rows is None else rows.sum()
        gathered = BatchStatistics(counts, sums, real - counts.sum(), loss, loss.shape[0])
        if not learning:
            self._memory.observe(gathered)
            self.nonfinite_rows.add_(gathered.skipped)
            return
        candidates = self._candidates(features.detach(), rows)
        if not self.staging:
            updates.commit([self], [gathered], [candidates])
            return
        self._memory.observe(gathered)
        self._stage(gathered, candidates)
        if self.update == "training" and not self._waits_for_model() and self.is_due():
            updates.commit_staged([self])

    @torch.no_grad()
    def apply_statistics(self, batch: BatchStatistics, candidates: Tensor | None) -> None:
        """Move the dictionary by the statistics of a (global) batch; `candidates` are rows for dead codes to restart."""
        self.nonfinite_rows.add_(batch.skipped)
        self._memory.observe(batch)
        ops.ema_commit_(
            self.codebook,
            self.ema_counts,
            self.ema_sums,
            self.center,
            self.num_updates,
            batch.counts,
            batch.sums,
            candidates,
            self.decay,
            self.eps,
            self.ema == "debiased",
            self.revive,
        )
        if self.metric == "cosine":
            self.codebook.copy_(F.normalize(self.codebook, dim=1))
        if callable(self.strength):
            self._memory.commits += 1

    # --- statistics that wait -------------------------------------------------------------------------------

    @property
    def staging(self) -> bool:
        """Whether training forwards stage their statistics instead of committing them."""
        return self.update == "manual" or self.update_every > 1 or self._waits_for_model()

    def is_due(self) -> bool:
        """Whether ``update_every`` forwards have been staged."""
        return self._memory.staged_forwards >= self.update_every

    def _waits_for_model(self) -> bool:
        return self.coalesced and distributed.group_name(self.process_group) is not None

    def make_room_to_stage(self) -> None:
        """Create the buffers that staged statistics are added up in; they are not saved."""
        if "staged_counts" in self._buffers:
            return
        device = self.codebook.device
        integers = {"dtype": torch.int64, "device": device}
        self.register_buffer("staged_counts", torch.zeros(self.num_codes, **integers), persistent=False)
        self.register_buffer("staged_sums", torch.zeros_like(self.codebook), persistent=False)
        self.register_buffer("staged_skipped", torch.zeros((), **integers), persistent=False)
        self.register_buffer("staged_samples", torch.zeros((), **integers), persistent=False)
        self.register_buffer("staged_loss", torch.zeros((), device=device), persistent=False)
        if self.revive > 0:
            self.register_buffer("staged_rows", torch.zeros_like(self.codebook), persistent=False)

    def _stage(self, batch: BatchStatistics, candidates: Tensor | None) -> None:
        self.staged_counts.add_(batch.counts)
        self.staged_sums.add_(batch.sums)
        self.staged_skipped.add_(batch.skipped)
        self.staged_samples.add_(batch.samples)
        self.staged_loss.add_(batch.loss.sum())
        if candidates is not None:
            self.staged_rows.copy_(candidates)
        self._memory.staged_forwards += 1

    def staged_statistics(self) -> BatchStatistics:
        """What has been staged since the last commit."""
        return BatchStatistics(
            self.staged_counts, self.staged_sums, self.staged_skipped, self.staged_loss, self.staged_samples
        )

    def staged_candidates(self) -> Tensor | None:
        """Rows of the last staged forward for dead codes to restart from, or None if they never do."""
        if self.revive <= 0:
            return None
        if self._memory.staged_forwards == 0:
            return no_restart_rows(
                self.codebook, self.num_updates, distributed.group_name(self.process_group)
            )
        return self.staged_rows

    def clear_staged(self) -> None:
        """Forget what has been staged."""
        for buffer in (
            self.staged_counts,
            self.staged_sums,
            self.staged_skipped,
            self.staged_samples,
            self.staged_loss,
        ):
            buffer.zero_()
        self._memory.staged_forwards = 0

    def _candidates(self, features: Tensor, rows: Tensor | None) -> Tensor | None:
        if self.revive <= 0:
            return None
        group = distributed.group_name(self.process_group)
        # Manual commits let ranks run different numbers of forwards, so a forward must not wait for the other
        # ranks.
        by_rank = self.update == "manual"
        return restart_rows(features, rows, self.num_updates, self.num_codes, group, by_rank=by_rank)

    # --- reports --------------------------------------------------------------------------------------------

    def usage(self, *, moving: bool = True) -> float:
        """Share of the codes in use, in [0, 1]: by the moving counts, or hit by the last batch. Waits for the device."""
        if moving:
            return 1 - self.dead_codes() / self.num_codes
        return 0.0 if self._memory.counts is None else (self._memory.counts > 0).float().mean().item()

    def perplexity(self, *, moving: bool = True) -> float:
        """``exp(-sum p log(p + 1e-10))`` of the moving counts or of the last batch; 0 if empty. Waits for the device."""
        counts = self.ema_counts if moving or self._memory.counts is None else self._memory.counts
        return perplexity(counts).item() if counts.sum() > 0 else 0.0

    def dead_codes(self) -> int:
        """Number of codes whose moving count is below 0.01, or below ``revive`` if that is more."""
        return int((self.ema_counts < max(DEAD_COUNT, self.revive)).sum())

    def last_loss(self) -> float | None:
        """Mean commitment loss of the last forward (of all ranks, if it committed), None before any."""
        return (
            None if self._memory.loss is None else batch_mean(self._memory.loss, self._memory.samples).item()
        )

    def extra_repr(self) -> str:
        """The settings that matter most, and how the dictionary is doing."""
        parts = [f"{self.dim}, {self.num_codes}", f"mode={self.mode}", f"decay={self.decay:g}"]
        if self.codebook.device.type == "meta":
            return ", ".join([*parts, "device=meta"])
        if bool(self.initialized):
            parts += [f"usage={self.usage():.0%}".replace("%", " %"), f"perplexity={self.perplexity():.1f}"]
        else:
            parts.append("not started")
        return ", ".join([*parts, f"backend={ops.select_backend(self.codebook)}"])

    # --- state ----------------------------------------------------------------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FeatureQuantizer:
        """Follow the model to another device, but stay float32: moving averages do not survive half precision."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self

    def _keep_float32(self) -> None:
        """Undo a cast that went around `_apply`, as the buffer casts of FSDP do."""
        if self.codebook.dtype == torch.float32:
            return
        for name, buffer in self._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                self._buffers[name] = buffer.float()

    def _check_state(self, state: Mapping[str, Any], prefix: str) -> list[str]:
        expected = {name: tuple(value.shape) for name, value in self.state_dict().items()}
        return check_state(state, prefix, expected)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load a saved state, all of it or nothing.

        Args:
            state_dict: what ``state_dict()`` returned.
            strict: refuse unexpected entries; missing ones are always refused.
            assign: as in `torch.nn.Module.load_state_dict`.

        Raises:
            RuntimeError: another K or dim, or an incomplete state. Nothing has changed then.
        """
        problems = self._check_state(state_dict, "")
        unexpected = [name for name in state_dict if name not in self.state_dict()]
        if strict and unexpected:
            problems.append(f"unexpected entries: {', '.join(unexpected)}")
        if problems:
            raise RuntimeError("cannot load this state into FeatureQuantizer: " + "; ".join(problems))
        return super().load_state_dict(state_dict, strict, assign)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        problems = self._check_state(state_dict, prefix)
        if problems:
            error_msgs.extend(problems)
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self._after_load()

    @torch.no_grad()
    def _after_load(self) -> None:
        """Bring what is not saved in line with what was loaded."""
        if self.codebook.device.type == "meta":
            return
        self._keep_float32()
        self.center.copy_(initialization.live_center(self.codebook, self.ema_counts, self.ema_sums))
        self.nonfinite_rows.zero_()
        if "staged_counts" in self._buffers:
            self.clear_staged()
        self._memory.started = bool(self.initialized)
        self._memory.commits = int(self.num_updates)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["frozen_depth"] = 0  # a copy made inside frozen() has no end of the block to wait for
        return state

    def _replicate_for_data_parallel(self) -> Any:
        warnings.warn(
            "FeatureQuantizer under DataParallel: the replicas' dictionary updates and commitment losses are lost; use "
            "DistributedDataParallel",
            stacklevel=2,
        )
        return super()._replicate_for_data_parallel()

    # --- other implementations ------------------------------------------------------------------------------

    @classmethod
    def from_reference(
        cls, state_dict: Mapping[str, Tensor], prefix: str = "", **options: Any
    ) -> FeatureQuantizer:
        """A layer with the dictionary of a quantizer from the PyTorch release of FQ-GAN.

        Args:
            state_dict: a state that contains ``embed`` (C, K), ``cluster_size`` (K,) and ``embed_avg`` (C,
                K).
            prefix: what stands before these names, such as ``"blocks.0.1."``.
            **options: settings of `FeatureQuantizer`; by default those of ``preset="fqgan"``.

        Raises:
            ValueError: no such quantizer under that prefix; prefixes that have one are listed.
        """
        codebook, counts, sums = released_state(state_dict, prefix)
        layer = cls(codebook.shape[1], codebook.shape[0], **{"preset": "fqgan", **options})
        layer._adopt(codebook, counts, sums)
        return layer

    def to_reference(self, prefix: str = "") -> dict[str, Tensor]:
        """The dictionary as a state of the released layer; the opposite of `from_reference`.

        Args:
            prefix: put before every name.
        """
        values = {"embed": self.codebook.t(), "cluster_size": self.ema_counts, "embed_avg": self.ema_sums.t()}
        return {prefix + name: value.detach().clone().contiguous() for name, value in values.items()}

    @classmethod
    def from_lucidrains(
        cls, state_dict: Mapping[str, Tensor], prefix: str = "", **options: Any
    ) -> FeatureQuantizer:
        """A layer with the dictionary and the projections of a ``vector_quantize_pytorch.VectorQuantize``.

        Args:
            state_dict: its state.
            prefix: what stands before ``_codebook.embed``.
            **options: settings of `FeatureQuantizer`, where the state cannot tell them (``heads``,
                ``metric``, ``revive``, ``decay``); by default those of ``preset="lucidrains"``.

        Raises:
            ValueError: no such quantizer under that prefix, or one with several codebooks, affine parameters
                or a normalized projection.
        """
        found = lucidrains_state(state_dict, prefix, options.pop("heads", 1))
        settings = {
            "preset": "lucidrains",
            "heads": found.heads,
            "codebook_dim": found.codebook.shape[1],
            **options,
        }
        layer = cls(found.dim, found.codebook.shape[0], **settings)
        layer._adopt(found.codebook, found.counts, found.sums)
        for name, values in found.projections.items():
            projection = getattr(layer, name)
            if projection is not None:
                projection.load_state_dict(values)
        return layer

    def to_lucidrains(self, prefix: str = "") -> dict[str, Tensor]:
        """The dictionary as a state of ``VectorQuantize``; the opposite of `from_lucidrains`.

        Args:
            prefix: put before every name.
        """
        values = {
            "_codebook.initted": self.initialized,
            "_codebook.cluster_size": self.ema_counts[None],
            "_codebook.embed_avg": self.ema_sums[None],
            "_codebook.embed": self.codebook[None],
        }
        for name in ("project_in", "project_out"):
            projection = getattr(self, name)
            if projection is not None:
                values |= {f"{name}.{key}": value for key, value in projection.state_dict().items()}
        return {prefix + name: value.detach().clone() for name, value in values.items()}

    @torch.no_grad()
    def _adopt(self, codebook: Tensor, counts: Tensor, sums: Tensor) -> None:
        """Take over a dictionary together with its moving statistics."""
        self.codebook.copy_(codebook)
        self.ema_counts.copy_(counts)
        self.ema_sums.copy_(sums)
        self.initialized.fill_(True)
        self._after_load()


class _Memory:
    """What a layer knows on the host, so that no step has to ask the device."""

    def __init__(self) -> None:
        self.started = False
        self.commits = 0
        self.staged_forwards = 0
        self.counts: Tensor | None = None
        self.loss: Tensor | None = None
        self.samples: Tensor | int = 0
        self.warned: set[str] = set()

    def observe(self, batch: BatchStatistics) -> None:
        """Keep what reports show of the last batch; not the sums, which may be large."""
        self.counts, self.loss, self.samples = batch.counts, batch.loss, batch.samples

    def warn_once(self, message: str) -> None:
        if message not in self.warned:
            self.warned.add(message)
            warnings.warn(message, stacklevel=5)


def _refuse_nonfinite(canonical: Tensor, mask: Tensor | None) -> None:
    """Raise if a real row holds a NaN or an infinity."""
    bad = ~torch.isfinite(canonical).all(dim=1).reshape(-1)
    bad = bad if mask is None else bad & mask
    if torch.compiler.is_compiling():
        torch._assert_async(~bad.any(), 'FeatureQuantizer(nonfinite="raise"): features hold NaN or Inf')
    elif bool(bad.any()):
        rows = bad.nonzero().squeeze(1)
        raise ValueError(
            f"{rows.numel()} of {bad.numel()} feature vectors hold NaN or Inf, the first at row {int(rows[0])}; "
            'nonfinite="skip" passes them through instead'
        )


def _repeat_for_heads(mask: Tensor | None, batch: int, heads: int) -> Tensor | None:
    if mask is None or heads == 1:
        return mask
    return mask.view(batch, -1).repeat_interleave(heads, dim=0).reshape(-1)


def _split_heads(features: Tensor, heads: int) -> Tensor:
    return features if heads == 1 else rearrange(features, "b (h c) p q -> (b h) c p q", h=heads)


def _join_heads(features: Tensor, heads: int) -> Tensor:
    return features if heads == 1 else rearrange(features, "(b h) c p q -> b (h c) p q", h=heads)


def _at_least_one(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value


def _between(name: str, value: Any, low: float, high: float, open_above: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    inside = low <= value < high if open_above or math.isinf(high) else low <= value <= high
    if not inside:  # also for NaN
        closing = ")" if open_above or math.isinf(high) else "]"
        raise ValueError(f"{name} must be in [{low:g}, {high:g}{closing}, got {value}")
    return float(value)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value
