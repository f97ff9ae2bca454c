"""Classifier-free guidance: away from what the null latent would say."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fq_toolkit.layers.latent.cache import cache_of


class LatentGuidance:
    """Logits processor: ``log p = log p(null) + scale * (log p(latent) - log p(null))``.

    It runs the model a second time per token, with the null latent and, without beams, a cache of its own.
    Source of the formula: arXiv 2207.12598.

    Args:
        model: an injected decoder-only model.
        null: the null latent, (1, ...) or one per sequence of the batch.
        scale: 1 is no guidance.
        attention_mask: of the prompt, (B, T), or None where nothing is padded.
        use_cache: False where the rows of the batch change places, as beams do.
    """

    def __init__(
        self, model: Any, null: Tensor, scale: float, attention_mask: Tensor | None, use_cache: bool
    ) -> None:
        self._model = model
        self._null = null
        self._scale = scale
        self._mask = attention_mask
        self._use_cache = use_cache
        self._cache: Any = None
        self._seen = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Guide the scores (rows, vocabulary) of the token after ``input_ids`` (rows, T)."""
        rows, length = input_ids.shape
        if self._null.shape[0] not in (1, rows):
            self._null = self._null.repeat_interleave(rows // self._null.shape[0], dim=0)
        mask = torch.ones_like(input_ids)
        if self._mask is not None:
            prompt = self._mask.repeat_interleave(rows // self._mask.shape[0], dim=0)
            mask[:, : prompt.shape[1]] = prompt
        options: dict[str, Any] = {"attention_mask": mask, "use_cache": self._use_cache}
        if self._model.takes_position_ids:
            options["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, self._seen :]
        with torch.no_grad():
            options[self._model.cache_name] = self._cache
            out = self._model(input_ids[:, self._seen :], latent=self._null, **options)
        if self._use_cache:
            self._cache, self._seen = cache_of(out), length
        guided = scores.float().log_softmax(-1)
        null = out.logits[:, -1].float().log_softmax(-1).to(guided.device)
        return null + self._scale * (guided - null)
