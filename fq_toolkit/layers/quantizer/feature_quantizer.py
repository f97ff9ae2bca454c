"""FeatureQuantizer: a dictionary lookup as a layer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from fq_toolkit.kernels import ops, tracing
from fq_toolkit.layers.checks import at_least_one, one_of
from fq_toolkit.layers.codebook.references import ReferenceStates
from fq_toolkit.layers.codebook.statistics import perplexity
from fq_toolkit.layers.quantizer import checkpointing, updates
from fq_toolkit.layers.quantizer.commitment import CommitmentLedger
from fq_toolkit.layers.quantizer.layout import (
    FeatureLayout,
    check_features,
    from_canonical,
    row_mask,
    to_canonical,
)
from fq_toolkit.layers.quantizer.presets import find_preset
from fq_toolkit.layers.quantizer.rotation import rotate_gradient

MODES = ("straight_through", "regularize", "rotation")


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


class Lookup(NamedTuple):
    """One forward before it is shaped for the user."""

    quantized: Tensor
    loss: Tensor
    indices: Tensor
    counts: Tensor
    recomputed: bool


class FeatureQuantizer(ReferenceStates):
    r"""Replace every feature vector by its nearest centroid; the dictionary follows by moving averages.

    For features :math:`x_n` and a dictionary :math:`E` of K centroids,

    .. math::

        i(n) &= \arg\min_k |x_n - e_k|^2 \quad \text{(lowest index on ties)}, \qquad q_n = e_{i(n)} \\
        loss_b &= \beta \, \mathrm{mean}_{c, p} (\mathrm{sg}(q) - x)^2 \\
        n_k &\leftarrow \lambda n_k + (1 - \lambda) count_k, \qquad
        m_k \leftarrow \lambda m_k + (1 - \lambda) sum_k \\
        e_k &= m_k \Big/ \Big( \frac{n_k + \epsilon}{\sum n + K \epsilon} \sum n \Big)

    The gradient passes straight through:
    :math:`dx = g_{out} + g_{loss} \, 2 \beta (x - q) / (C \cdot positions)`.  The loss is kept until
    `commitment_loss` reads it.  Outputs and gradients use the dictionary from before the update of the same
    call.

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
        init: "data", "kmeans", "normal" or "uniform", see `codebook.initialization`; or the codes
            themselves, ``(K, C)``, as for `set_codebook`.
        revive: a code whose moving count falls below this restarts from a row of the batch, with fresh
            statistics; 0 never restarts one, 0.1 is a good start.
        revive_by: "share" measures ``revive``, in [0, 1], in mean moving counts, so that it means the same
            for any batch and any K; "count" measures it in rows, as the references do and as their presets
            choose.
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
        chosen_counts: ``(K,)`` float32, moving counts since the last restart of each code: what the data
            chose, which `usage` counts; only with ``revive``.
        num_updates: int64, updates so far.
        initialized: bool, whether the dictionary has started.
        nonfinite_rows: int64, rows skipped so far; not saved, and no buffer.
        codebook_frozen: bool, whether `freeze_codebook` holds the dictionary still.

    The state is the layer's own: to give it a dictionary call `set_codebook`. Assigning ``codebook`` does the
    same, and codes written in place (``copy_``, indexing, loaders that go around ``load_state_dict``) start
    with statistics of their own, as if they had been restarted, at the next training forward.

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
        init: Any = None,
        revive: float | None = None,
        revive_by: str | None = None,
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
        heads = at_least_one("heads", heads)
        if codebook_dim is None and at_least_one("dim", dim) % heads:
            raise ValueError(f"dim={dim} cannot be split into heads={heads} equal parts; pass codebook_dim")
        given: dict[str, Any] = {"mode": mode, "decay": decay, "commitment": commitment, "eps": eps}
        codebook = None if init is None or isinstance(init, str) else init
        given |= {"ema": ema, "init": None if codebook is not None else init}
        given |= {"revive": revive, "revive_by": revive_by}
        settings = replace(find_preset(preset), **{k: v for k, v in given.items() if v is not None})
        super().__init__(
            num_codes,
            dim // heads if codebook_dim is None else codebook_dim,
            settings,
            given=codebook,
            strength=strength,
            metric=metric,
            update=update,
            update_every=update_every,
            process_group=process_group,
            device=device,
        )
        self.dim = at_least_one("dim", dim)
        self.heads = self.lookups_per_row = heads
        self.mode = one_of("mode", settings.mode, MODES)
        self.precision = one_of("precision", precision, ("exact", "fast"))
        self.nonfinite = one_of("nonfinite", nonfinite, ("skip", "raise"))
        self.channel_dim = channel_dim
        self.ledger = CommitmentLedger()
        # A projection is there to change the number of channels, and only then; without the centroids going
        # forward nothing would train the way back.
        inner = heads * self.codebook_dim
        self.project_in = nn.Linear(dim, inner, device=device) if inner != dim else None
        back = inner != dim and self.mode != "regularize"
        self.project_out = nn.Linear(inner, dim, device=device) if back else None

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
            RuntimeError: in training inside a transform of `torch.func` or under forward derivatives.
        """
        layout = check_features(x, self.dim, self.channel_dim)
        found = self.look_up(x, layout, row_mask(mask, lengths, x.shape[0], layout, x.device), in_band=False)
        if found.loss.requires_grad and not found.recomputed and not tracing.under_export():
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
        found = self.look_up(x, layout, row_mask(mask, lengths, x.shape[0], layout, x.device), in_band=True)
        indices = found.indices.clamp(min=-1).to(torch.int64)
        if self.heads > 1:
            indices = indices.view(x.shape[0], self.heads, *layout.positions).movedim(1, -1)
        else:
            indices = indices.view(x.shape[0], *layout.positions)
        return QuantizerOutput(found.quantized, indices, found.loss, perplexity(found.counts))

    def decode(self, indices: Tensor) -> Tensor:
        """Turn indices back into features: what `quantize` returned as ``quantized`` for them.

        Args:
            indices: integers as `quantize` returned them; -1 gives zeros.

        Returns:
            Features in the layout of the layer's input, contiguous; float32, or the dtype of the projection.

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
            codes = self.project_out(codes.to(self.project_out.weight.dtype))
        elif self.project_in is not None:
            raise ValueError(
                'mode="regularize" has no projection back from codebook_dim, so there is nothing to decode'
            )
        codes = torch.where(valid, codes, torch.zeros_like(codes))
        ndim = codes.ndim
        axis = self.channel_dim % ndim if self.channel_dim is not None else (2 if ndim == 3 else 1)
        return codes.movedim(-1, axis).contiguous()

    def look_up(self, x: Tensor, layout: FeatureLayout, mask: Tensor | None, in_band: bool) -> Lookup:
        """One lookup with everything that belongs to it: start, update, bookkeeping."""
        canonical = to_canonical(x, layout)
        if self.nonfinite == "raise":
            _refuse_nonfinite(canonical, mask)
        features, usable = self._encode(canonical, mask)
        rows = _repeat_for_heads(mask, x.shape[0], self.heads)
        task = None if torch.compiler.is_compiling() else checkpointing.in_backward()
        learning = self.may_learn(task)
        transformed = tracing.under_transform()
        if transformed and learning:
            raise RuntimeError(
                "a FeatureQuantizer in training changes its dictionary in place, which transforms of "
                "torch.func and forward derivatives cannot see; call eval() before, or transform inside "
                "frozen(model)"
            )
        if task is None and not transformed and not tracing.under_export():
            self.notice_writes(learning)
            if self.coalesced and self.training and (learning or self.awaited) and self.is_left_due():
                # A second lookup before the end of the model's forward, or after a forward that failed:
                # the update of the first comes before it, as in a single process.
                updates.commit_staged([self])
        self.start(features, rows, learning)
        dictionary = self.consult(torch.is_grad_enabled() and features.requires_grad, task, in_band)

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
        if task is None and not tracing.under_export() and not transformed:
            self.memory.shape = tuple(x.shape)
            self.learn(features.detach(), rows, loss.detach(), counts, sums.detach(), learning)
        if not with_output:
            # The loss keeps x for its gradient, and the host may go on with an in-place activation: let it.
            x = x.clone() if loss.requires_grad else x
            return Lookup(x, loss, indices, counts, task is not None)
        if self.mode == "rotation":
            batch, _, height, width = features.shape
            out = rotate_gradient(features, out, None if rows is None else rows.view(batch, 1, height, width))
        out = from_canonical(self._decode_features(out, canonical, usable), layout)
        if self._transforms and not transformed and x.is_contiguous():
            out = out.contiguous()
        return Lookup(out, loss, indices, counts, task is not None)

    # --- between the user's features and those of the dictionary --------------------------------------------

    @property
    def _transforms(self) -> bool:
        """Whether a row is more than a lookup: then a bad row must be taken out as a whole."""
        return self.project_in is not None or self.metric == "cosine" or self.heads > 1

    def _encode(self, canonical: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Features ``(B h, codebook_dim, P, Q)`` to look up, and the rows that may be transformed.

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
            out = out.movedim(1, -1).to(self.project_out.weight.dtype)
            out = self.project_out(out).movedim(-1, 1)
        return torch.where(usable, out.to(canonical.dtype), canonical)

    def _per_sample_loss(self, sq_error: Tensor, mask: Tensor | None, batch: int, positions: Any) -> Tensor:
        """``(B,)``: the squared error over channels and real positions; 0 for a sample without any."""
        if self.heads > 1:
            sq_error = sq_error.view(batch, self.heads).sum(dim=1)
        channels = self.heads * self.codebook_dim
        if mask is None:
            return sq_error * (self.commitment / max(channels * positions, 1))
        real = mask.view(batch, positions).sum(dim=1).clamp(min=1)
        return sq_error * (self.commitment / channels) / real

    # --- the rest of a module -------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """The settings that matter most, and how the dictionary is doing."""
        parts = [f"{self.dim}, {self.num_codes}", f"mode={self.mode}", f"decay={self.decay:g}"]
        if self.codebook.device.type == "meta":
            return ", ".join([*parts, "device=meta"])
        if self.codebook_frozen:
            parts.append("frozen")
        if self.has_started():
            parts += [f"usage={self.usage():.0%}".replace("%", " %"), f"perplexity={self.perplexity():.1f}"]
        else:
            parts.append("not started")
        return ", ".join([*parts, f"backend={ops.select_backend(self.codebook)}"])

    def _replicate_for_data_parallel(self) -> Any:
        warnings.warn(
            "FeatureQuantizer under DataParallel: dictionary updates and commitment losses of the replicas "
            "are lost; use DistributedDataParallel",
            stacklevel=2,
        )
        return super()._replicate_for_data_parallel()


def _refuse_nonfinite(canonical: Tensor, mask: Tensor | None) -> None:
    """Raise if a real row holds a NaN or an infinity."""
    bad = ~torch.isfinite(canonical).all(dim=1).reshape(-1)
    bad = bad if mask is None else bad & mask
    if torch.compiler.is_compiling():
        torch._assert_async(~bad.any(), 'FeatureQuantizer(nonfinite="raise"): features hold NaN or Inf')
    elif bool(bad.any()):
        rows = bad.nonzero().squeeze(1)
        raise ValueError(
            f"{rows.numel()} of {bad.numel()} feature vectors hold NaN or Inf, the first at row "
            f'{int(rows[0])}; nonfinite="skip" passes them through instead'
        )


def _repeat_for_heads(mask: Tensor | None, batch: int, heads: int) -> Tensor | None:
    if mask is None or heads == 1:
        return mask
    return mask.view(batch, mask.numel() // max(batch, 1)).repeat_interleave(heads, dim=0).reshape(-1)


def _split_heads(features: Tensor, heads: int) -> Tensor:
    return features if heads == 1 else rearrange(features, "b (h c) p q -> (b h) c p q", h=heads)


def _join_heads(features: Tensor, heads: int) -> Tensor:
    return features if heads == 1 else rearrange(features, "(b h) c p q -> b (h c) p q", h=heads)
