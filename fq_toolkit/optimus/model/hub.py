"""Pretrained networks for a sentence VAE, and the special tokens that its decoder needs."""

from __future__ import annotations

import logging
from typing import Any

from safetensors import SafetensorError

from fq_toolkit.optimus.model.batch import Tokenizers
from fq_toolkit.training.errors import RunError

logger = logging.getLogger("fq_toolkit")

# Role -> token that is added where a tokenizer has none, in the order of the release.
TEXT_TOKENS = {"pad_token": "<PAD>", "bos_token": "<BOS>", "eos_token": "<EOS>"}


def load_pretrained(encoder: str, decoder: str, **options: Any) -> tuple[Any, Any, Tokenizers]:
    """Load an encoder and a decoder with their tokenizers.

    The decoder gets <PAD>, <BOS> and <EOS> where it lacks them: for GPT-2 as 50257, 50258 and 50259, as in
    the release. GPT-2's tokenizer puts a space before a text, so that its first word is the same token as
    anywhere else.

    Args:
        encoder: name on the hub, or a folder: ``"bert-base-cased"``.
        decoder: name on the hub, or a folder: ``"gpt2"``.
        **options: of ``from_pretrained``, for all four: ``local_files_only``, ``cache_dir``, ``token`` ...

    Returns:
        Encoder, decoder and tokenizers. An encoder whose checkpoint has no pooler is returned without one.

    Raises:
        RunError: a name that is no folder, and that the hub does not have or cannot be asked about; or a
            folder in which something is missing, damaged or of another kind.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizers = load_tokenizers(encoder, decoder, **options)
    reader = _load_network(_encoder_class(_load(AutoConfig, encoder, options)), encoder, options)
    writer = _load_network(AutoModelForCausalLM, decoder, options)
    add_text_tokens(tokenizers.decoder, writer)
    return reader, writer, tokenizers


def load_tokenizers(encoder: str, decoder: str, **options: Any) -> Tokenizers:
    """Load the tokenizers of an encoder and a decoder as they are; see `load_pretrained`."""
    from transformers import AutoTokenizer

    reader = _load(AutoTokenizer, encoder, options)
    writer = _load(AutoTokenizer, decoder, options)
    if "GPT2" in type(writer).__name__:
        writer = _load(AutoTokenizer, decoder, {**options, "add_prefix_space": True})
    for name, tokenizer in ((encoder, reader), (decoder, writer)):
        # If its files are missing, transformers makes a tokenizer that knows no words, without an error.
        if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
            raise RunError(f"{name!r} has no tokenizer beside its weights: save it into the same folder")
    return Tokenizers(reader, writer)


def add_text_tokens(tokenizer: Any, decoder: Any) -> int:
    """Give a decoder and its tokenizer PAD, BOS and EOS tokens where they have none, in place.

    GPT-2's <|endoftext|>, which is both BOS and EOS, does not count: after BOS the sentence would be over.
    New rows of the embedding are initialized as the model initializes its own.

    Args:
        tokenizer: of the decoder.
        decoder: a language model of transformers.

    Returns:
        How many tokens were added.
    """
    added = add_missing_tokens(tokenizer)
    if len(tokenizer) > decoder.get_input_embeddings().weight.shape[0]:
        # mean_resizing would draw new rows around the mean of the others, and not as the model does.
        decoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return added


def add_missing_tokens(tokenizer: Any) -> int:
    """Add PAD, BOS and EOS to a tokenizer whose decoder has embeddings for them; see `add_text_tokens`."""
    lacks = {role for role in TEXT_TOKENS if getattr(tokenizer, f"{role}_id") is None}
    if tokenizer.bos_token_id == tokenizer.eos_token_id:
        lacks |= {"bos_token", "eos_token"}
    before = len(tokenizer)
    for role, token in TEXT_TOKENS.items():  # one at a time: their ids follow this order
        if role in lacks:
            tokenizer.add_special_tokens({role: token})
    return len(tokenizer) - before


def _encoder_class(config: Any) -> Any:
    """Return the class that loads an encoder: AutoModel, or for the T5 family one with only the encoder."""
    import transformers

    if not config.is_encoder_decoder:
        return transformers.AutoModel
    return transformers.AutoModelForTextEncoding


def _load_network(kind: Any, name: str, options: dict[str, Any]) -> Any:
    """Load a network, and refuse a checkpoint without all of its weights: they would be random.

    Checkpoints of masked language models rarely have a pooler; then it is removed, with a warning.
    """
    network, report = _load(kind, name, {**options, "output_loading_info": True})
    missing = sorted(report["missing_keys"])
    if missing and getattr(network, "pooler", None) is not None and all("pooler." in key for key in missing):
        network.pooler = None
        logger.warning("%r has no pooler, so that the state of [CLS] stands for a sentence", name)
    elif missing:
        raise RunError(
            f"the checkpoint {name!r} lacks {', '.join(missing[:4])} of {type(network).__name__}, which "
            "would be random; give a checkpoint of that model"
        )
    return network


def _load(kind: Any, name: str, options: dict[str, Any]) -> Any:
    """Call ``from_pretrained``, and say in one sentence what is wrong."""
    try:
        return kind.from_pretrained(name, **options)
    except (OSError, ValueError, SafetensorError) as error:  # not there, not what it should be, damaged
        reason = str(error).splitlines()[0]
        raise RunError(
            f"cannot load {name!r}: it is no folder with what is needed, and the hub is out of reach or does "
            f"not have it ({reason}); give a local folder, or run once with a connection"
        ) from error
