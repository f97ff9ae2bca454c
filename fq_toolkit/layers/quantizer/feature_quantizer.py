"""FeatureQuantizer: a dictionary lookup as a layer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fq_toolkit.kernels import ops, private
from fq_toolkit.layers.checks import at_least_one, between, one_of
from fq_toolkit.layers.codebook import learning, references
from fq_toolkit.layers.codebook.dictionary import MovingDictionary
from fq_toolkit.layers.codebook.presets import settings_for
from fq_toolkit.layers.codebook.statistics import perplexity
from fq_toolkit.layers.quantizer import encoding
from fq_toolkit.layers.quantizer.circumstances import circumstances, dictionary_for
from fq_toolkit.layers.quantizer.layout import (
    FeatureLayout,
    check_features,
    from_canonical,
    row_mask,
    to_canonical,
)
from fq_toolkit.layers.quantizer.ledger import CommitmentLedger, per_sample_loss
from fq_toolkit.layers.quantizer.results import Lookup, QuantizerOutput
from fq_toolkit.layers.quantizer.rotation import rotate_gradient
from fq_toolkit.layers.quantizer.strength import Strength

if TYPE_CHECKING:
    from typing_extensions import Self

MODES = ("straight_through", "regularize", "rotation")


class FeatureQuantizer(MovingDictionary):
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
    run.

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
        own_codes = init is not None and not isinstance(init, str)
        settings = settings_for(
            preset,
            mode=mode,
            decay=decay,
            commitment=commitment,
            eps=eps,
            ema=ema,
            init=None if own_codes else init,
            revive=revive,
            revive_by=revive_by,
        )
        super().__init__(
            num_codes,
            dim // heads if codebook_dim is None else codebook_dim,
            init=init if own_codes else settings.init,
            decay=settings.decay,
            eps=settings.eps,
            ema=settings.ema,
            revive=settings.revive,
            revive_by=settings.revive_by,
            metric=metric,
            update=update,
            update_every=update_every,
            process_group=process_group,
            device=device,
        )
        self.dim = at_least_one("dim", dim)
        self.heads = heads
        self.mode = one_of("mode", settings.mode, MODES)
        self.commitment = between("commitment", settings.commitment, 0, float("inf"))
        self.precision = one_of("precision", precision, ("exact", "fast"))
        self.nonfinite = one_of("nonfinite", nonfinite, ("skip", "raise"))
        self.channel_dim = channel_dim
        self.ledger = CommitmentLedger()
        self._strength = Strength()
        self.strength = strength
        # A projection is there to change the number of channels, and only then; without the centroids going
        # forward nothing would train the way back.
        inner = heads * self.codebook_dim
        self.project_in = nn.Linear(dim, inner, device=device) if inner != dim else None
        back = inner != dim and self.mode != "regularize"
        self.project_out = nn.Linear(inner, dim, device=device) if back else None

    @property
    def strength(self) -> float | Callable[[int], float]:
        """How far the output goes towards the centroids: a number in [0, 1] or a schedule; may be set."""
        schedule = self._strength.schedule
        return self._strength.number if schedule is None else schedule.function

    @strength.setter
    def strength(self, value: float | Callable[[int], float]) -> None:
        self._strength.set(value)
        scheduled = self._strength.schedule is not None
        if scheduled and not self.host.counts_commits and not self.num_updates.is_meta:
            self.host.commits_now.fill_(int(self.num_updates))  # nobody has counted until now
        self.host.counts_commits = scheduled

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
        rows = row_mask(mask, lengths, x.shape[0], layout, x.device)
        lookup = self.look_up(x, layout, rows, returns_loss=False)
        # A repetition has been recorded the first time, and an exported graph has no ledger.
        if lookup.loss.requires_grad and not lookup.is_replay and not private.under_export():
            self.ledger.record(lookup.loss)
        return lookup.quantized

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
        rows = row_mask(mask, lengths, x.shape[0], layout, x.device)
        lookup = self.look_up(x, layout, rows, returns_loss=True)
        indices = lookup.indices.clamp(min=-1).to(torch.int64)  # the kernels tell two kinds of bad rows apart
        if self.heads > 1:
            indices = indices.view(x.shape[0], self.heads, *layout.positions).movedim(1, -1)
        else:
            indices = indices.view(x.shape[0], *layout.positions)
        return QuantizerOutput(lookup.quantized, indices, lookup.loss, perplexity(lookup.counts))

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
        encoding.check_indices(indices, self.heads, self.num_codes)
        if self.project_out is None and self.project_in is not None:
            raise ValueError(
                'mode="regularize" has no projection back from codebook_dim, so there is nothing to decode'
            )
        return encoding.decode(self.codebook, indices, self.heads, self.project_out, self.channel_dim)

    # --- one lookup, step by step ---------------------------------------------------------------------------

    def look_up(self, x: Tensor, layout: FeatureLayout, mask: Tensor | None, *, returns_loss: bool) -> Lookup:
        """Run one lookup with everything that belongs to it.

        Args:
            x: features, checked.
            layout: their layout.
            mask: ``(N,)`` bool, or None.
            returns_loss: whether the caller hands the loss on to the user, rather than recording it.
        """
        # 1. The features as the kernels read them, `(B * heads, codebook_dim, P, Q)`, and their row mask.
        canonical = to_canonical(x, layout)
        if self.nonfinite == "raise":
            encoding.refuse_nonfinite(canonical, mask)
        features, usable = canonical, None
        if self._transforms:
            unit = self.metric == "cosine"
            features, usable = encoding.encode(canonical, mask, self.heads, self.project_in, unit)
        batch, rows = x.shape[0], encoding.repeat_for_heads(mask, x.shape[0], self.heads)

        # 2. The dictionary: in order, started, and the one that this forward must see.
        run = circumstances(self)
        if run.is_plain:
            learning.catch_up(self, run.learning)
        learning.start(self, features, rows, run.learning)
        needs_grad = torch.is_grad_enabled() and features.requires_grad
        records_loss = self.commitment > 0 and not returns_loss
        dictionary = dictionary_for(
            self, run, self._strength, needs_grad=needs_grad, records_loss=records_loss
        )

        # 3. The lookup, one op. Output and loss are differentiable; counts and sums are for the update.
        with_output = self.mode != "regularize"
        out, indices, sq_error, counts, sums = ops.quantize_forward(
            features,
            dictionary.codebook,
            dictionary.center,
            rows,
            dictionary.strength,
            with_output,
            run.learning,
            self.precision == "exact",
        )
        positions = canonical.shape[2] * canonical.shape[3]
        if self.heads > 1:
            sq_error = sq_error.view(batch, self.heads).sum(dim=1)
        channels = self.heads * self.codebook_dim
        loss = per_sample_loss(sq_error, mask, batch, channels, positions, self.commitment)

        # 4. The update. After the lookup: outputs and gradients are those of the dictionary before it.
        if run.is_plain:
            self.host.shape = tuple(x.shape)
            learning.learn(
                self,
                features.detach(),
                rows,
                loss.detach(),
                counts,
                sums.detach(),
                lookups_per_row=self.heads,
                learning=run.learning,
            )

        # 5. The output in the user's layout.
        if not with_output:
            # The loss keeps x for its gradient, and the host may go on with an in-place activation: let it.
            x = x.clone() if loss.requires_grad else x
            return Lookup(x, loss, indices, counts, run.replay_of is not None)
        if self.mode == "rotation":
            lookup_batch, _, height, width = features.shape
            real = None if rows is None else rows.view(lookup_batch, 1, height, width)
            out = rotate_gradient(features, out, real)
        if usable is not None:
            out = encoding.restore(out, canonical, usable, self.heads, self.project_out)
        out = from_canonical(out, layout)
        if usable is not None and not run.transformed and x.is_contiguous():
            out = out.contiguous()  # a projection leaves its channels last in memory
        return Lookup(out, loss, indices, counts, run.replay_of is not None)

    @property
    def _transforms(self) -> bool:
        """Whether a row is more than a lookup: then a bad row must be taken out as a whole."""
        return self.project_in is not None or self.metric == "cosine" or self.heads > 1

    # --- the states of other implementations ----------------------------------------------------------------

    @classmethod
    def from_reference(
        cls, state_dict: Mapping[str, Tensor], prefix: str = "", *, layout: str | None = None, **options: Any
    ) -> Self:
        """Build a layer with the dictionary of the release of FQ-GAN, or of a quantizer after Encodec.

        Args:
            state_dict: a state that contains ``embed``, ``cluster_size`` (K,) and ``embed_avg`` like
                ``embed``.
            prefix: what stands before these names, such as ``"blocks.0.1."``.
            layout: "released" for ``embed`` (C, K), as in FQ-GAN; "encodec" for (K, C), as in Encodec and
                what follows it; None to find out from the shapes and, with K = C, from the statistics.
            **options: settings of `FeatureQuantizer`; by default those of ``preset="fqgan"``, or for
                "encodec" ``decay=0.99`` and ``commitment=1.0``. (Encodec also restarts codes:
                ``revive=2.0, revive_by="count"``.)

        Raises:
            ValueError: no such quantizer under that prefix (prefixes that have one are listed), or one whose
                layout cannot be told.
        """
        return references.read_released(state_dict, prefix, layout).build(cls, options)

    @classmethod
    def from_encodec(cls, state_dict: Mapping[str, Tensor], prefix: str = "", **options: Any) -> Self:
        """Build a layer with the dictionary of a quantizer of Encodec: `from_reference` with its layout.

        Args:
            state_dict: as there, with ``embed`` (K, C).
            prefix: what stands before its names, such as ``"quantizer.layers.0.codebook."``.
            **options: settings of `FeatureQuantizer`.
        """
        return cls.from_reference(state_dict, prefix, layout="encodec", **options)

    @classmethod
    def from_embedding(
        cls, source: nn.Embedding | Tensor | Mapping[str, Tensor], prefix: str = "", **options: Any
    ) -> Self:
        """Build a layer with a dictionary that was kept in an ``nn.Embedding``, as VQGAN does.

        Its codes were trained by gradients and have no moving statistics: each counts as one row seen, as
        after `set_codebook`.

        Args:
            source: the embedding, its weight ``(K, C)``, or a state with ``embedding.weight``.
            prefix: what stands before that name in a state, such as ``"quantize."``.
            **options: settings of `FeatureQuantizer`; ``metric="cosine"`` where the original normalizes
                codes, as LlamaGen does.

        Raises:
            TypeError: another kind of source.
            ValueError: no embedding under that prefix, or a weight that is no dictionary.
        """
        weight = references.embedding_weight(source, prefix)
        num_codes, channels = weight.shape
        return cls(channels * options.get("heads", 1), num_codes, **{**options, "init": weight})

    @classmethod
    def from_lucidrains(cls, state_dict: Mapping[str, Tensor], prefix: str = "", **options: Any) -> Self:
        """Build a layer with the dictionary and projections of ``vector_quantize_pytorch.VectorQuantize``.

        Args:
            state_dict: its state.
            prefix: what stands before ``_codebook.embed``.
            **options: settings of `FeatureQuantizer`, where the state cannot tell them (``heads``,
                ``metric``, ``revive``, ``decay``); by default those of ``preset="lucidrains"``.

        Raises:
            ValueError: no such quantizer under that prefix, or one with several codebooks, affine parameters
                or a normalized projection.
        """
        heads = options.pop("heads", 1)
        return references.read_lucidrains(state_dict, prefix, heads).build(cls, options)

    def to_reference(self, prefix: str = "") -> dict[str, Tensor]:
        """Return the dictionary as a state of the released layer, ``prefix`` before every name."""
        state = references.released_state(self.codebook, self.ema_counts, self.ema_sums)
        return {prefix + name: value for name, value in state.items()}

    def to_lucidrains(self, prefix: str = "") -> dict[str, Tensor]:
        """Return the dictionary as a state of ``VectorQuantize``, ``prefix`` before every name."""
        projections = {"project_in": self.project_in, "project_out": self.project_out}
        state = references.lucidrains_state(
            self.codebook, self.ema_counts, self.ema_sums, self.initialized, projections
        )
        return {prefix + name: value for name, value in state.items()}

    # --- the rest of a module -------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """Name the settings that matter most, and how the dictionary is doing."""
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
