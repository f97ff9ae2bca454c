"""Conversion between the released Optimus models and ours, in both directions.

A released model is a BERT and a GPT-2 with the latent in both memory and embeddings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fq_toolkit.layers.latent.injection import inject_latent
from fq_toolkit.layers.latent.original_checkpoints import EMBEDDING_KEY, MEMORY_KEY, load_original_decoder
from fq_toolkit.layers.latent.projector import CHILD
from fq_toolkit.optimus.model.batch import Tokenizers
from fq_toolkit.optimus.model.hub import add_missing_tokens, load_tokenizers
from fq_toolkit.optimus.model.original_files import OriginalRun, read_run, write_run
from fq_toolkit.optimus.model.saving import SETTINGS
from fq_toolkit.optimus.model.sentence_vae import SentenceVAE
from fq_toolkit.training.atomic import whole_folder

ENCODER, DECODER = "bert-base-cased", "gpt2"
# Channels of each head in every released BERT and GPT-2, for runs without a config.json.
_HEAD = 64
_BERT = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings",
    "type_vocab_size", "initializer_range", "layer_norm_eps",
)  # fmt: skip
_GPT2 = (
    "vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "resid_pdrop", "embd_pdrop", "attn_pdrop",
    "layer_norm_epsilon", "initializer_range",
)  # fmt: skip


def convert_optimus(
    folder: str | Path,
    out: str | Path,
    *,
    step: int | None = None,
    mode: str | None = None,
    tokenizers: Tokenizers | None = None,
    heads: int | None = None,
) -> Path:
    """Convert a released model into ours, or ours into a released one, depending on what ``folder`` holds.

    All weights keep their bits in both directions. The state of the optimizer is not converted. The release
    has weights for memory and embeddings in every mode: those that a mode does not use are dropped, and
    written as zeros on the way back.

    Args:
        folder: a run of the release, with ``checkpoint-full-N`` or ``checkpoint-encoder-N`` and
            ``checkpoint-decoder-N`` in it; or a folder of `SentenceVAE.save_pretrained`.
        out: the new folder.
        step: which checkpoint of a released run, by default the last; or the number to write, by default 0.
        mode: "memory", "embedding" or "both"; by default what the command line of the run says, else "both".
            Only for a released model.
        tokenizers: those of the run; by default those that its command line names, or those of
            ``bert-base-cased`` and ``gpt2``. Only for a released model.
        heads: attention heads of both networks, which weights do not show, for a checkpoint without its
            ``config.json``; by default one for every 64 channels. Only for a released model.

    Returns:
        ``out``.

    Raises:
        ValueError: weights that are missing, unknown or of a wrong shape, or a model that the release cannot
            hold.
        RunError: tokenizers that are not at hand while offline, or a folder that cannot be written.
    """
    if (Path(folder) / SETTINGS).is_file() or (Path(folder) / "model" / SETTINGS).is_file():
        if mode is not None or tokenizers is not None or heads is not None:
            raise ValueError("mode, tokenizers and heads are for released models; ours have their own")
        run = to_original(SentenceVAE.from_pretrained(folder), step=step or 0)
        with whole_folder(out) as part:
            write_run(run, part)
        return Path(out)
    from_original(read_run(folder, step), mode=mode, tokenizers=tokenizers, heads=heads).save_pretrained(out)
    return Path(out)


def from_original(
    run: OriginalRun,
    *,
    mode: str | None = None,
    tokenizers: Tokenizers | None = None,
    heads: int | None = None,
) -> SentenceVAE:
    """Return a released model as ours; see `convert_optimus`."""
    from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

    encoder = BertModel(BertConfig(**_bert_config(run, heads)))
    decoder = GPT2LMHeadModel(GPT2Config(**_gpt2_config(run, heads)))
    state = {name: value for name, value in run.encoder.items() if name != "embeddings.position_ids"}
    if "linear.weight" not in state:
        raise ValueError(
            "the encoder of the checkpoint has no linear.weight, the projection to mu and logvar"
        )
    projection = state.pop("linear.weight")
    latent_size = projection.shape[0] // 2
    _load_strictly(encoder, state, "encoder")
    if tokenizers is None:
        names = [run.args.get(f"{role}_model_name_or_path") for role in ("encoder", "decoder")]
        tokenizers = load_tokenizers(names[0] or ENCODER, names[1] or DECODER)
        add_missing_tokens(tokenizers.decoder)
    decoder = inject_latent(decoder, mode=mode or _mode(run.args), latent_size=latent_size)
    load_original_decoder(decoder, run.decoder)
    vae = SentenceVAE(encoder, decoder, tokenizers, latent_size=latent_size, pooling="pooler")
    with torch.no_grad():
        vae.linear.weight.copy_(projection)
    return vae.eval()


def to_original(vae: SentenceVAE, *, step: int = 0) -> OriginalRun:
    """Return our model as a released one; see `convert_optimus`."""
    from transformers import BertModel, GPT2LMHeadModel

    spec = vae.decoder.latent_spec
    simple = spec.projector == "linear" and (not spec.has_memory or (spec.slots == 1 and spec.share_kv))
    whole = simple and (not spec.has_memory or len(spec.layers) == spec.num_layers)
    if not isinstance(vae.encoder, BertModel) or not isinstance(vae.decoder, GPT2LMHeadModel):
        raise ValueError(
            f"the release has a BERT and a GPT-2, and this is a {type(vae.encoder).__name__} "
            f"and a {type(vae.decoder).__name__}"
        )
    if vae.pooling != "pooler" or not whole:
        raise ValueError(
            "the release has BERT's pooler and a linear projector, with one slot in every layer that is key "
            "and value; this model differs"
        )
    encoder = {name: _plain(value) for name, value in vae.encoder.state_dict().items()}
    encoder["linear.weight"] = _plain(vae.linear.weight)
    bert, gpt2 = vae.encoder.config.to_dict(), vae.decoder.config.to_dict()
    width, layers = gpt2["n_embd"], gpt2["n_layer"]
    decoder = {MEMORY_KEY: torch.zeros(layers * width, vae.latent_size)}
    decoder[EMBEDDING_KEY] = torch.zeros(width, vae.latent_size)
    names = {f"{CHILD}.memory.weight": MEMORY_KEY, f"{CHILD}.embedding.weight": EMBEDDING_KEY}
    for name, value in vae.decoder.state_dict().items():
        decoder[names.get(name, name)] = _plain(value)
    if torch.equal(decoder["lm_head.weight"], decoder["transformer.wte.weight"]):
        decoder["lm_head.weight"] = decoder["transformer.wte.weight"]  # tied: stored once
    size = gpt2["n_positions"]
    causal = torch.ones(size, size).tril().view(1, 1, size, size)
    for layer in range(layers):  # its attention has the causal mask among its buffers
        decoder[f"transformer.h.{layer}.attn.bias"] = causal
    args = {
        "latent_size": vae.latent_size,
        "latent_as_gpt_memory": int(spec.has_memory),
        "latent_as_gpt_emb": int(spec.has_embedding),
        "encoder_model_type": "bert",
        "decoder_model_type": "gpt2",
    }
    common: dict[str, Any] = {"finetuning_task": None, "num_labels": 2, "pruned_heads": {}}
    common |= {"output_attentions": False, "output_hidden_states": False, "torchscript": False}
    return OriginalRun(
        encoder,
        decoder,
        {**common, **{name: bert[name] for name in _BERT}},
        {**common, **{name: gpt2[name] for name in _GPT2}, "n_ctx": size, "latent_size": vae.latent_size},
        args,
        step,
    )


def _bert_config(run: OriginalRun, heads: int | None) -> dict[str, Any]:
    """Return the settings of the encoder, from its config.json and the shapes of its weights."""
    state = run.encoder
    words, width = _shape(state, "embeddings.word_embeddings.weight")
    given = {name: run.encoder_config[name] for name in _BERT if name in run.encoder_config}
    return {
        **given,
        "num_attention_heads": _heads("encoder", width, given.get("num_attention_heads"), heads),
        "vocab_size": words,
        "hidden_size": width,
        "max_position_embeddings": _shape(state, "embeddings.position_embeddings.weight")[0],
        "type_vocab_size": _shape(state, "embeddings.token_type_embeddings.weight")[0],
        "num_hidden_layers": _count(state, "encoder.layer."),
        "intermediate_size": _shape(state, "encoder.layer.0.intermediate.dense.weight")[0],
    }


def _gpt2_config(run: OriginalRun, heads: int | None) -> dict[str, Any]:
    """Return the settings of the decoder, from its config.json and the shapes of its weights."""
    state = run.decoder
    words, width = _shape(state, "transformer.wte.weight")
    given = {name: run.decoder_config[name] for name in _GPT2 if name in run.decoder_config}
    return {
        **given,
        "n_head": _heads("decoder", width, given.get("n_head"), heads),
        "vocab_size": words,
        "n_embd": width,
        "n_positions": _shape(state, "transformer.wpe.weight")[0],
        "n_layer": _count(state, "transformer.h."),
        "n_inner": _shape(state, "transformer.h.0.mlp.c_fc.weight")[1],
    }


def _heads(role: str, width: int, configured: int | None, asked: int | None) -> int:
    """Return the attention heads of a network: shapes of weights are the same for any number of them.

    Raises:
        ValueError: when they cannot be told, do not divide the width, or are not those of ``config.json``.
    """
    if configured is not None:
        if asked is not None and asked != configured:
            raise ValueError(
                f"heads is {asked}, and config.json of the {role} has {configured}: leave heads out"
            )
        return configured
    if asked is None and width % _HEAD:
        raise ValueError(
            f"the {role} has {width} channels and no config.json, and {width} is no multiple of {_HEAD}: its "
            "attention heads cannot be told from its weights; pass heads"
        )
    heads = width // _HEAD if asked is None else asked
    if heads < 1 or width % heads:
        raise ValueError(f"heads is {heads}; expected a divisor of the {width} channels of the {role}")
    return heads


def _mode(args: dict[str, Any]) -> str:
    """Return where the run has the latent, by its command line; the default of the release is both."""
    memory, embedding = (int(args.get(f"latent_as_gpt_{kind}", 1)) for kind in ("memory", "emb"))
    return "both" if memory and embedding else "memory" if memory else "embedding"


def _shape(state: dict[str, Tensor], name: str) -> tuple[int, int]:
    """Return the shape of a matrix that must be there."""
    if name not in state or state[name].ndim != 2:
        raise ValueError(f"the checkpoint has no matrix {name}; it is not of a released Optimus")
    rows, columns = state[name].shape
    return rows, columns


def _count(state: dict[str, Tensor], prefix: str) -> int:
    """Return how many layers there are, by the numbers after the prefix."""
    numbers = {int(name[len(prefix) :].split(".")[0]) for name in state if name.startswith(prefix)}
    return 1 + max(numbers, default=-1)


def _load_strictly(model: Any, state: dict[str, Tensor], role: str) -> None:
    """Load weights, all of them and no others."""
    own = model.state_dict()
    problems = [f"{name} is missing" for name in own if name not in state]
    problems += [f"{name} is unknown" for name in state if name not in own]
    problems += [
        f"{name} is {tuple(value.shape)}, expected {tuple(own[name].shape)}"
        for name, value in state.items()
        if name in own and own[name].shape != value.shape
    ]
    if problems:
        raise ValueError(f"the {role} of the checkpoint does not fit: " + "; ".join(problems[:6]))
    model.load_state_dict(state)


def _plain(value: Tensor) -> Tensor:
    """Return a copy of a tensor for a file: on the CPU, with its own storage."""
    return value.detach().cpu().clone()
