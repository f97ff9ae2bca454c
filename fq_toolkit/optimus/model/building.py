"""The parts of a sentence VAE: small networks to start from, and checks that parts fit together."""

from __future__ import annotations

from typing import Any

from torch import nn

from fq_toolkit.layers.checks import one_of
from fq_toolkit.layers.latent.injection import inject_latent
from fq_toolkit.layers.latent.model import LatentModel
from fq_toolkit.optimus.model.batch import Tokenizers, decoder_specials, encoder_frame

POOLINGS = ("pooler", "cls", "mean")
LONGEST = 512


def small_networks(
    tokenizers: Tokenizers,
    *,
    width: int = 128,
    layers: int = 2,
    heads: int = 2,
    dropout: float = 0.1,
    positions: int = 128,
) -> tuple[Any, Any]:
    """Return a BERT and a GPT-2 with random weights and the vocabularies of the tokenizers.

    Args:
        tokenizers: of encoder and decoder.
        width: channels of each network; a multiple of ``heads``.
        layers: layers of each network.
        heads: attention heads of each network.
        dropout: probability of all dropouts.
        positions: most tokens that each network can read.

    Returns:
        Encoder and decoder.
    """
    from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

    if width % heads:
        raise ValueError(f"width must be a multiple of heads, got {width} and {heads}")
    bos, eos, pad = decoder_specials(tokenizers.decoder)
    encoder = BertConfig(
        vocab_size=len(tokenizers.encoder), hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=heads, intermediate_size=4 * width, max_position_embeddings=positions,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
        pad_token_id=tokenizers.encoder.pad_token_id,
    )  # fmt: skip
    decoder = GPT2Config(
        vocab_size=len(tokenizers.decoder), n_embd=width, n_layer=layers, n_head=heads, n_positions=positions,
        embd_pdrop=dropout, attn_pdrop=dropout, resid_pdrop=dropout,
        bos_token_id=bos, eos_token_id=eos, pad_token_id=pad,
    )  # fmt: skip
    return BertModel(encoder), GPT2LMHeadModel(decoder)


def check_networks(encoder: Any, decoder: Any, tokenizers: Tokenizers) -> None:
    """Refuse networks that are not from transformers, or have fewer embeddings than their tokenizer tokens.

    Raises:
        TypeError: a network of the wrong kind.
        ValueError: a vocabulary that is too small, or a tokenizer without BOS, EOS or PAD.
    """
    from transformers import PreTrainedModel

    decoder_specials(tokenizers.decoder)
    for role, model, tokenizer in zip(("encoder", "decoder"), (encoder, decoder), tokenizers, strict=True):
        if not isinstance(model, PreTrainedModel):
            raise TypeError(f"{role} must be a model of transformers, got {type(model).__name__}")
        table: Any = model.get_input_embeddings()
        rows, words = table.weight.shape[0], len(tokenizer)
        if words > rows:
            raise ValueError(
                f"the {role} embeds {rows} tokens and its tokenizer has {words}; "
                f"call {role}.resize_token_embeddings({words})"
            )
    if encoder.config.is_encoder_decoder:
        raise TypeError(
            f"encoder is a {type(encoder).__name__}, which decodes as well; "
            "give only the encoder, T5EncoderModel for example"
        )


def choose_pooling(encoder: Any, tokenizer: Any, pooling: str | None) -> str:
    """Return how a sentence becomes one vector: as asked, else by pooler, by CLS, or by the mean."""
    has = {
        "pooler": getattr(encoder, "pooler", None) is not None,
        # The state of the first token is used, and XLNet has its CLS at the end.
        "cls": tokenizer.cls_token_id is not None
        and encoder_frame(tokenizer)[0][:1] == [tokenizer.cls_token_id],
        "mean": True,
    }
    if pooling is None:
        return next(name for name in POOLINGS if has[name])
    if not has[one_of("pooling", pooling, POOLINGS)]:
        lacks = "no pooler" if pooling == "pooler" else "a tokenizer without a CLS token in front"
        raise ValueError(f"pooling={pooling!r} cannot work: {type(encoder).__name__} has {lacks}")
    return pooling


def with_latent(decoder: Any, latent_size: int, mode: str | None) -> Any:
    """Return the decoder with a latent: inject one, or check the one that is there.

    Raises:
        ValueError: the decoder has a latent of another size or in another mode.
    """
    if not isinstance(decoder, LatentModel):
        return inject_latent(decoder, mode=mode or "memory", latent_size=latent_size)
    spec = decoder.latent_spec  # type: ignore[attr-defined]
    if spec.latent_size != latent_size:
        raise ValueError(
            f"the decoder was injected with latent_size={spec.latent_size}, and latent_size={latent_size} "
            "is asked for; give both the same"
        )
    if mode is not None and mode != spec.mode:
        raise ValueError(
            f"the decoder was injected with mode={spec.mode!r}, and mode={mode!r} is asked for; leave it out"
        )
    return decoder


def set_generation_defaults(decoder: Any, tokenizer: Any) -> None:
    """Make a decoder begin with BOS, end with EOS, and decode greedily by default.

    Many checkpoints come with a GenerationConfig that samples with some temperature; it is replaced.
    """
    from transformers import GenerationConfig

    bos, eos, pad = decoder_specials(tokenizer)
    tokens = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}
    if decoder.config.is_encoder_decoder:
        tokens["decoder_start_token_id"] = bos
    # In the config too, which some models read in place of their generation config.
    for name, token in tokens.items():
        setattr(decoder.config, name, token)
    decoder.generation_config = GenerationConfig(**tokens)


def choose_max_length(encoder: Any, decoder: Any, asked: int | None) -> int:
    """Return the most tokens of a sentence: as asked, else as many as both networks read, up to 512.

    Raises:
        ValueError: one of the networks reads fewer than asked.
    """
    rooms = {"encoder": _encoder_positions(encoder), "decoder": _decoder_positions(decoder)}
    known = {name: room for name, room in rooms.items() if room is not None}
    if asked is None:
        return min(LONGEST, *known.values()) if known else LONGEST
    for name, room in known.items():
        if asked > room:
            raise ValueError(f"max_length={asked} is too long: the {name} has room for {room} tokens")
    return asked


def _decoder_positions(decoder: Any) -> int | None:
    """Return how many tokens a decoder has positions for; None where positions are relative."""
    spec = decoder.latent_spec
    if spec.max_positions is not None:  # learned ones, the first of which belong to the latent slots
        return spec.max_positions - spec.first_position
    # Rotary positions have no end, but the model was never trained beyond this one.
    return getattr(decoder.config.get_text_config(decoder=True), "max_position_embeddings", None)


def _encoder_positions(encoder: Any) -> int | None:
    """Return how many tokens an encoder has learned positions for; None where it needs none."""
    for name, module in encoder.named_modules():
        if name.endswith(("position_embeddings", "embed_positions")) and isinstance(module, nn.Embedding):
            # The RoBERTa family starts counting after the padding index.
            start = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - start
    return None
