"""Generation from latents: prompts, one latent for each, drafts, and classifier-free guidance."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from fq_toolkit.layers.latent.cache import cache_of
from fq_toolkit.layers.latent.projector import check_latent
from fq_toolkit.layers.latent.spec import LatentSpec


def prepare_generation(
    model: Any, inputs: Tensor | None, latent: Tensor, null_latent: Tensor | None, options: dict[str, Any]
) -> tuple[Tensor | None, dict[str, Any]]:
    """Check a call of ``generate`` with a latent, and make the call that the base model's generate gets.

    Args:
        model: of an injected class.
        inputs: the prompts as first argument, or None.
        latent: one per prompt, or one for all.
        null_latent: what guidance leads away from, or None for zeros.
        options: all other arguments, by name.

    Returns:
        The prompts as first argument, and all other arguments, the latent among them.

    Raises:
        ValueError: a latent that does not fit, no BOS token to start from, or guidance that cannot work.
    """
    check_latent(latent, model.latent_spec)
    _check_draft(model, options.get("assistant_model"))
    prompt = _find_prompt(inputs, options)
    if prompt is None:
        inputs = prompt = _begin(model, latent, options)
        options.setdefault("attention_mask", torch.ones_like(prompt))
    # One row per prompt, as generate repeats the latent with its prompt for beams and several sequences.
    if latent.shape[0] == 1:
        latent = latent.expand(prompt.shape[0], *latent.shape[1:])
    if latent.shape[0] != prompt.shape[0]:
        raise ValueError(
            f"latent has {latent.shape[0]} rows and there are {prompt.shape[0]} prompt(s); "
            "give one latent per prompt, or one for all"
        )
    latent = latent.to(prompt.device)
    scale = _option(model, "guidance_scale", options)
    if scale is not None and scale != 1:
        null = torch.zeros_like(latent[:1]) if null_latent is None else null_latent.to(prompt.device)
        guidance = _guidance(model, null, scale, prompt, options)
        options["guidance_scale"] = 1.0  # keeps the model's own guidance, which drops the prompt, out of it
        # First, as temperature and the like are meant for the guided scores.
        others = options.get("logits_processor")
        options["logits_processor"] = [guidance] if others is None else type(others)([guidance, *others])
    elif null_latent is not None:
        raise ValueError(
            "null_latent has no effect without guidance_scale; pass guidance_scale= other than 1"
        )
    return inputs, {"latent": latent, **options}


def refuse_in_batches(options: dict[str, Any]) -> None:
    """Refuse a latent for continuous batching, which would ignore it.

    Raises:
        ValueError: a latent was given.
    """
    named = [name for name in ("latent", "null_latent") if options.get(name) is not None]
    if named:
        raise ValueError(
            f"continuous batching (generate_batch) takes no {named[0]}: its pages hold text of all requests; "
            "use model.generate(input_ids, latent=...), with one latent per prompt"
        )


def _check_draft(model: Any, draft: Any) -> None:
    """Refuse an assistant model whose latents have another size."""
    other: LatentSpec | None = getattr(draft, "latent_spec", None)
    if other is not None and other.latent_size != model.latent_spec.latent_size:
        raise ValueError(
            f"the assistant_model was injected with latent_size={other.latent_size} and this model "
            f"with latent_size={model.latent_spec.latent_size}; inject both with the same, or give a "
            "draft without a latent"
        )


def _find_prompt(inputs: Tensor | None, options: dict[str, Any]) -> Tensor | None:
    """Return the tensor that has a row for each prompt, or None if there is no prompt."""
    for prompt in (inputs, options.get("input_ids"), options.get("inputs_embeds")):
        if prompt is not None:
            return prompt
    encoded = options.get("encoder_outputs")
    return None if encoded is None else encoded[0]


def _option(model: Any, name: str, options: dict[str, Any]) -> Any:
    """Return an option of generate: its keyword, else from the given config, else from the model's."""
    if name in options:
        return options[name]
    value = getattr(options.get("generation_config"), name, None)
    return getattr(model.generation_config, name, None) if value is None else value


def _begin(model: Any, latent: Tensor, options: dict[str, Any]) -> Tensor:
    """Return a BOS token for each latent, (B, 1)."""
    bos = _option(model, "bos_token_id", options)
    bos = getattr(model.config, "bos_token_id", None) if bos is None else bos
    if bos is None:
        raise ValueError(
            f"{type(model).__name__} has no BOS token to start from: give input_ids, "
            "or set model.generation_config.bos_token_id"
        )
    return torch.full((latent.shape[0], 1), bos, dtype=torch.long, device=model.device)


def _guidance(
    model: Any, null: Tensor, scale: float, prompt: Tensor, options: dict[str, Any]
) -> LatentGuidance:
    """Return the processor that guides, if it can."""
    check_latent(null, model.latent_spec)
    if null.shape[0] not in (1, prompt.shape[0]):
        raise ValueError(
            f"null_latent has {null.shape[0]} rows; give 1 or one per prompt ({prompt.shape[0]})"
        )
    option = functools.partial(_option, model, options=options)
    # The processor sees token ids only, from which it makes the text of the null latent again.
    if model.config.is_encoder_decoder or prompt.is_floating_point():
        raise ValueError("guidance_scale with a latent works on decoder-only models and prompts of token ids")
    # Drafts are checked several tokens at a time, and a processor sees them one by one.
    drafts = ("prompt_lookup_num_tokens", "assistant_early_exit", "assistant_model")
    if any(option(name) is not None for name in drafts):
        raise ValueError(
            "guidance_scale with a latent does not work with prompt lookup or an assistant model"
        )
    beams = option("num_beams") or 1
    return LatentGuidance(model, null, scale, options.get("attention_mask"), use_cache=beams == 1)


class LatentGuidance:
    """Logits processor of guidance: ``log p = log p(null) + scale * (log p(latent) - log p(null))``.

    It runs the model a second time per token, with the null latent and, without beams, a cache of its own.

    Source: "Classifier-Free Diffusion Guidance", arXiv 2207.12598, equation 6, with ``scale = 1 + w``.

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
        # Beams and several sequences repeat each prompt in place: its rows stay neighbours.
        if self._null.shape[0] not in (1, rows):
            self._null = self._null.repeat_interleave(rows // self._null.shape[0], dim=0)
        mask = torch.ones_like(input_ids)
        if self._mask is not None:
            prompt = self._mask.repeat_interleave(rows // self._mask.shape[0], dim=0)
            mask[:, : prompt.shape[1]] = prompt
        options: dict[str, Any] = {"attention_mask": mask, "use_cache": self._use_cache}
        if self._model.takes_position_ids:
            options["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, self._seen :]
        with torch.no_grad():  # processors may run outside of generate's own
            options[self._model.cache_name] = self._cache
            out = self._model(input_ids[:, self._seen :], latent=self._null, **options)
        if self._use_cache:
            self._cache, self._seen = cache_of(out), length
        # In float32, as differences of log probabilities are multiplied; logits need not be normalised
        # before.
        guided = scores.float().log_softmax(-1)
        null = out.logits[:, -1].float().log_softmax(-1).to(guided.device)
        return null + self._scale * (guided - null)
