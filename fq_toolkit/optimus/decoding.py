"""What the decoder of a sentence VAE computes and writes, whichever model it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fq_toolkit.optimus.batch import decoder_specials


def decoder_logits(decoder: Any, ids: Tensor, latent: Tensor, bos: int) -> Tensor:
    """Logits (B, T, vocabulary) of the tokens that follow those in ``ids`` (B, T).

    Where the decoder has an encoder of its own, that reads BOS: all there is to know is in the latent.
    """
    if decoder.config.is_encoder_decoder:
        source = ids.new_full((ids.shape[0], 1), bos)
        return decoder(input_ids=source, decoder_input_ids=ids, latent=latent, use_cache=False).logits
    return decoder(input_ids=ids, latent=latent, use_cache=False).logits


def generate_ids(
    decoder: Any, tokenizer: Any, latent: Tensor, *, max_new_tokens: int, **options: Any
) -> Tensor:
    """Token ids (B, T) that follow BOS, by the decoder's own ``generate`` with its cache.

    Greedy unless options say otherwise, and at most ``max_new_tokens`` of them, so that it always ends.
    """
    from transformers import GenerationConfig

    bos, eos, _ = decoder_specials(tokenizer)
    options = {"do_sample": False, "num_beams": 1, "use_cache": True, **options}
    if options["do_sample"]:
        options.setdefault("top_k", 0)  # all tokens, unless asked otherwise: transformers would keep 50
    # A sentence that has ended goes on in EOS until the others end: models warn of PAD in what they read.
    config = GenerationConfig(
        bos_token_id=bos, eos_token_id=eos, pad_token_id=eos, max_new_tokens=max_new_tokens, **options
    )
    begin = torch.full((latent.shape[0], 1), bos, dtype=torch.long, device=latent.device)
    inputs: dict[str, Tensor] = {"input_ids": begin, "attention_mask": torch.ones_like(begin)}
    if decoder.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = begin
    return decoder.generate(**inputs, latent=latent, generation_config=config)[:, 1:]


def texts_from_ids(tokenizer: Any, ids: Tensor) -> list[str]:
    """The sentences in generated ids (B, T): what stands before the first EOS.

    Of the special tokens, only the unknown word is written: without it its neighbours would be one word.
    """
    _, eos, _ = decoder_specials(tokenizer)
    dropped = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    rows = [row[: row.index(eos)] if eos in row else row for row in ids.tolist()]
    return [
        tokenizer.decode(
            [token for token in row if token not in dropped], clean_up_tokenization_spaces=False
        ).strip()
        for row in rows
    ]


def check_latents(z: Tensor, latent_size: int) -> None:
    """Refuse what cannot be decoded.

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
    """Run a block without dropout and without gradients, and put the modes of all modules back."""
    modes = [(module, module.training) for root in modules for module in root.modules()]
    for root in modules:
        root.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
