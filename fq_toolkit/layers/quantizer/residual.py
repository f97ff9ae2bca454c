"""ResidualQuantizer: a stack of quantizers, each working on what the ones before left over."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from fq_toolkit.kernels import private
from fq_toolkit.layers.checks import at_least_one, between, one_of
from fq_toolkit.layers.codebook.dictionary import NOT_SCRIPTABLE
from fq_toolkit.layers.codebook.presets import find_preset
from fq_toolkit.layers.codebook.statistics import perplexity
from fq_toolkit.layers.quantizer.feature_quantizer import MODES, FeatureQuantizer
from fq_toolkit.layers.quantizer.layout import check_features, from_canonical, row_mask, to_canonical
from fq_toolkit.layers.quantizer.results import QuantizerOutput
from fq_toolkit.layers.quantizer.rotation import rotate_gradient


class _Stack(NamedTuple):
    """One forward through all levels."""

    output: QuantizerOutput
    level_losses: list[Tensor]


class ResidualQuantizer(nn.Module):
    r"""Quantize features as a sum of centroids, one per level.

    .. math:: r_1 = x, \quad q_l = Q_l(r_l), \quad r_{l+1} = r_l - \mathrm{sg}(q_l), \quad \hat x = \sum_l q_l

    Every level is a `FeatureQuantizer` with a dictionary of its own; its loss pulls the residual towards its
    centroid.  The gradient passes straight through the whole stack (or is rotated, with ``mode="rotation"``).

    Args:
        dim: number of channels C.
        num_codes: number of centroids K of each level.
        num_levels: number of levels.
        dropout: in training use only the first ``l`` levels of a sample, ``l`` drawn evenly from 1 to
            ``num_levels`` for each sample, so that every prefix of the codes is useful. Skipped levels have
            index -1, no loss, and do not learn from the sample.
        strength: as in `FeatureQuantizer`, for the stack as a whole; a number.
        mode: as in `FeatureQuantizer`, for the stack as a whole.
        **options: other settings of every `FeatureQuantizer`; ``init`` may be ``(levels, K, C)`` codes.

    Shape:
        As `FeatureQuantizer`; indices have a last axis of ``num_levels``.

    Raises:
        ValueError: a setting outside its range.

    Example:
        >>> import torch
        >>> from fq_toolkit import ResidualQuantizer
        >>> layer = ResidualQuantizer(16, 32, num_levels=4, init="normal").eval()
        >>> out = layer.quantize(torch.randn(2, 50, 16))
        >>> out.indices.shape
        torch.Size([2, 50, 4])
        >>> bool(torch.allclose(layer.decode(out.indices), out.quantized, atol=1e-5))
        True

    Source: "SoundStream", arXiv 2107.03312, section III.C (residual quantizer and quantizer dropout).
    """

    def __init__(
        self,
        dim: int,
        num_codes: int,
        *,
        num_levels: int,
        dropout: bool = False,
        mode: str | None = None,
        strength: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__()
        if options.get("heads", 1) != 1 or options.get("codebook_dim") is not None:
            raise ValueError("ResidualQuantizer quantizes residuals as they are: no heads, no codebook_dim")
        if options.get("metric", "euclidean") != "euclidean":
            raise ValueError('residuals have lengths that matter: ResidualQuantizer needs metric="euclidean"')
        self.num_levels = at_least_one("num_levels", num_levels)
        self.dropout = dropout
        self.strength = between("strength", strength, 0, 1)
        self.mode = one_of("mode", find_preset(options.get("preset")).mode if mode is None else mode, MODES)
        # The levels must hand their centroids on, whatever the stack does with the gradient.
        options["mode"] = "straight_through"
        starts = [options.pop("init", None)] * num_levels
        if starts[0] is not None and not isinstance(starts[0], str):
            given = torch.as_tensor(starts[0])
            if given.ndim != 3 or given.shape[0] != num_levels:
                raise ValueError(
                    f"given dictionaries must be (levels, K, C) = ({num_levels}, {num_codes}, {dim}), "
                    f"got {tuple(given.shape)}"
                )
            starts = list(given)
        self.levels = nn.ModuleList(FeatureQuantizer(dim, num_codes, init=init, **options) for init in starts)
        self.dim, self.channel_dim = dim, options.get("channel_dim")

    def forward(self, x: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        """Quantize the features; the levels' losses go to `commitment_loss`.

        Args:
            x: features.
            mask: as in `FeatureQuantizer.forward`.
            lengths: as in `FeatureQuantizer.forward`.

        Returns:
            Features like ``x``.
        """
        stack = self._run(x, mask, lengths, returns_loss=False)
        is_replay = not torch.compiler.is_compiling() and private.current_backward_pass() is not None
        if not is_replay and not private.under_export():
            for i, loss in enumerate(stack.level_losses):
                if loss.requires_grad:
                    self._level(i).ledger.record(loss)
        return stack.output.quantized

    def quantize(
        self, x: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None
    ) -> QuantizerOutput:
        """Quantize the features and return all there is to know.

        Args:
            x: features.
            mask: as in `FeatureQuantizer.forward`.
            lengths: as in `FeatureQuantizer.forward`.

        Returns:
            `QuantizerOutput`: indices with a last axis of levels, the loss ``(B,)`` summed over the levels,
            and the perplexity of each level, ``(levels,)``.
        """
        return self._run(x, mask, lengths, returns_loss=True).output

    def decode(self, indices: Tensor) -> Tensor:
        """Turn indices back into features: the sum of the levels' centroids.

        Args:
            indices: integers with a last axis of at most ``num_levels`` levels; -1 adds nothing.

        Returns:
            Float32 features in the layout of the input.

        Raises:
            TypeError: indices that are not integers.
            ValueError: more levels than there are, none, or an index outside a dictionary.
        """
        if indices.ndim < 2 or not 1 <= indices.shape[-1] <= self.num_levels:
            raise ValueError(
                f"indices must end with an axis of 1 to {self.num_levels} levels, got shape "
                f"{tuple(indices.shape)}"
            )
        parts = [self._level(i).decode(indices[..., i]) for i in range(indices.shape[-1])]
        return torch.stack(parts).sum(dim=0)

    def freeze_codebook(self) -> None:
        """Hold the dictionaries of all levels still, see `FeatureQuantizer.freeze_codebook`."""
        for i in range(self.num_levels):
            self._level(i).freeze_codebook()

    def unfreeze_codebook(self) -> None:
        """Let the dictionaries of all levels move again."""
        for i in range(self.num_levels):
            self._level(i).unfreeze_codebook()

    def __prepare_scriptable__(self) -> ResidualQuantizer:
        raise TypeError(NOT_SCRIPTABLE.format(type(self).__name__))

    def _level(self, i: int) -> FeatureQuantizer:
        return cast(FeatureQuantizer, self.levels[i])

    def _run(self, x: Tensor, mask: Tensor | None, lengths: Tensor | None, *, returns_loss: bool) -> _Stack:
        layout = check_features(x, self.dim, self.channel_dim)
        rows = row_mask(mask, lengths, x.shape[0], layout, x.device)
        batch, shape = x.shape[0], (x.shape[0], *layout.positions)
        used = None
        if self.dropout and self.training:
            # Drawn by torch: a checkpointed repetition, which restores its state, then draws the same.
            used = torch.randint(1, self.num_levels + 1, (batch, 1), device=x.device)
        canonical = to_canonical(x, layout)
        _, _, height, width = canonical.shape

        residual, total = canonical, torch.zeros_like(canonical)
        indices, losses, perplexities = [], [], []
        real = torch.ones(1, dtype=torch.bool, device=x.device)
        for i in range(self.num_levels):
            level_rows = rows
            if used is not None:
                kept = (used > i).expand(batch, height * width).reshape(-1)
                level_rows = kept if rows is None else rows & kept
            lookup = self._level(i).look_up(
                from_canonical(residual, layout), layout, level_rows, returns_loss=returns_loss
            )
            # Levels hand on constants: the gradient goes through the stack once, in `_output`, and each loss
            # pulls only its own residual.
            valid = (lookup.indices >= 0).view(batch, 1, height, width)
            centroid = to_canonical(lookup.quantized.detach(), layout)
            total = torch.where(valid, total + centroid, total)
            residual = torch.where(valid, residual - centroid, residual)
            real = valid if i == 0 else real  # the first level sees every sample
            indices.append(lookup.indices.clamp(min=-1).to(torch.int64).view(shape))
            losses.append(lookup.loss)
            perplexities.append(perplexity(lookup.counts))
        output = QuantizerOutput(
            from_canonical(self._output(canonical, total, real), layout),
            torch.stack(indices, dim=-1),
            torch.stack(losses).sum(dim=0),
            torch.stack(perplexities),
        )
        return _Stack(output, losses)

    def _output(self, x: Tensor, total: Tensor, real: Tensor) -> Tensor:
        """Return what goes forward for the summed centroids; rows that no level touched stay the user's."""
        if self.mode == "regularize":
            return x
        fixed = x.detach()
        target = total if self.strength == 1 else fixed + self.strength * (total - fixed)
        straight = torch.where(real, target + (x - fixed), x)
        return rotate_gradient(x, straight, real) if self.mode == "rotation" else straight
