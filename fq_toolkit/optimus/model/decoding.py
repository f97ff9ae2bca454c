"""Logits and texts from the decoder of a sentence VAE, whichever model it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from fq_toolkit.layers.checks import at_least_one
from fq_toolkit.optimus.model.batch import decoder_specials
from fq_toolkit.optimus.model.generation_options import sort_options


def decoder_logits(decoder: Any, ids: Tensor, latent: Tensor, bos: int) -> Tensor:
    """Compute the logits (B, T, vocabulary) of the tokens that follow those in ``ids`` (B, T).

    The encoder of an encoder-decoder reads only BOS: what the sentence says is in the latent.
    """
    if decoder.config.is_encoder_decoder:
        source = ids.new_full((ids.shape[0], 1), bos)
        return decoder(input_ids=source, decoder_input_ids=ids, latent=latent, use_cache=False).logits
    return decoder(input_ids=ids, latent=latent, use_cache=False).logits


def write_texts(
    decoder: Any, tokenizer: Any, latents: Tensor, *, batch_size: int, longest: int, **options: Any
) -> list[str]:
    """Write a sentence for each latent (N, ...), by the decoder's own ``generate`` with its cache.

    Greedy unless options say otherwise. ``longest`` bounds the tokens, so that generation always ends.

    Args:
        decoder: an injected decoder.
        tokenizer: of the decoder.
        latents: one for each sentence.
        batch_size: sentences that are written at once.
        longest: most tokens of a sentence, whatever ``max_new_tokens`` says.
        **options: of ``generate``.

    Raises:
        TypeError: an option that generate does not have.
        ValueError: options that do not fit.
    """
    bos, eos, _ = decoder_specials(tokenizer)
    # A sentence that has ended is padded with EOS until the others end: models warn about PAD as input.
    tokens = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": eos}
    config, arguments, one_by_one = sort_options(decoder, tokens, options)
    config.max_new_tokens = min(at_least_one("max_new_tokens", config.max_new_tokens), longest)
    null = arguments.pop("null_latent", None)
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    texts: list[str] = []
    size = 1 if one_by_one else at_least_one("batch_size", batch_size)
    for start in range(0, len(latents), size):
        part = latents[start : start + size]
        begin = torch.full((len(part), 1), bos, dtype=torch.long, device=part.device)
        inputs: dict[str, Any] = {"input_ids": begin, "attention_mask": torch.ones_like(begin)}
        if decoder.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = begin
        if null is not None:
            inputs["null_latent"] = null if len(null) == 1 else null[start : start + size]
        output = decoder.generate(**inputs, latent=part, generation_config=config, **arguments)
        ids = output if isinstance(output, Tensor) else output.sequences
        texts += texts_from_ids(tokenizer, ids[:, 1:], ends)
    return texts


def texts_from_ids(tokenizer: Any, ids: Tensor, ends: Sequence[int]) -> list[str]:
    """Return the sentences in generated ids (B, T): what comes before the first token of ``ends``.

    The unknown word is the only special token that is written: without it, its neighbours would look as if
    they had followed each other.
    """
    dropped = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    rows = [list(takewhile(lambda token: token not in ends, row)) for row in ids.tolist()]
    return [
        tokenizer.decode(
            [token for token in row if token not in dropped], clean_up_tokenization_spaces=False
        ).strip()
        for row in rows
    ]


def check_latents(z: Tensor, latent_size: int) -> None:
    """Refuse latents that cannot be decoded.

    Raises:
        TypeError: not a tensor of floats.
        ValueError: another shape than (N, latent_size), or a NaN or an infinity in it.
    """
    if not isinstance(z, Tensor) or not z.is_floating_point():
        what = f"a tensor of {z.dtype}" if isinstance(z, Tensor) else type(z).__name__
        raise TypeError(f"latents must be a floating-point tensor (N, {latent_size}), got {what}")
    if z.ndim != 2 or z.shape[1] != latent_size or z.shape[0] == 0:
        raise ValueError(f"latents must have the shape (N, {latent_size}), got {tuple(z.shape)}")
    finite = z.isfinite().all(1)
    if not bool(finite.all()):
        rows = torch.nonzero(~finite).flatten().tolist()
        raise ValueError(f"latents must be finite; row(s) {rows[:8]} have a NaN or an infinity")


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Run a block without dropout and gradients, and restore the mode of every module afterwards."""
    modes = [(module, module.training) for root in modules for module in root.modules()]
    for root in modules:
        root.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
