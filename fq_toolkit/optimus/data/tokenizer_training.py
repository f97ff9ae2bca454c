"""Tokenizers trained in place on the sentences of a run, so that everything works offline."""

import json
from collections.abc import Sequence
from typing import Any, Literal

from fq_toolkit.optimus.data.checked_cache import cached_bytes, key_of
from fq_toolkit.optimus.data.tokenized import WORTH_CACHING
from fq_toolkit.optimus.model.batch import Tokenizers, as_list
from fq_toolkit.training.errors import ConfigError

Kind = Literal["word", "subword"]

# Names as in BERT's and in the released GPT-2 vocabulary.
ENCODER_SPECIALS = {
    "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}  # fmt: skip
DECODER_SPECIALS = {"pad_token": "<PAD>", "bos_token": "<BOS>", "eos_token": "<EOS>"}
WORD_DECODER_SPECIALS = DECODER_SPECIALS | {"unk_token": "<UNK>"}
# Endings that tokenizers of whole words split off as tokens of their own.
ENDINGS = ("s", "ed")
_JOIN = "##"
_MIN_SIZE = 300
_FORMAT = "1"


def train_tokenizers(
    sentences: Sequence[str], vocab_size: int = 8000, *, kind: Kind = "subword"
) -> Tokenizers:
    """Train tokenizers for an encoder and a decoder. The same sentences give the same tokenizers.

    Args:
        sentences: the text.
        vocab_size: most tokens of each, special ones included.
        kind: ``"word"``: words between spaces, for small languages, with the endings -s and -ed as tokens of
            their own, so that ``girl`` and ``girls`` share one; a word that was never seen becomes the
            unknown token. ``"subword"``: byte-level BPE like GPT-2's, for which no text is unknown.

    Returns:
        The tokenizers: ``[CLS] text [SEP]`` for the encoder; text without a frame for the decoder, which has
        PAD, BOS and EOS tokens.

    Raises:
        ConfigError: without sentences, or with a vocabulary too small for all bytes or for a single word.
    """
    sentences = as_list(sentences)
    if not sentences:
        raise ConfigError("no sentences were given; a tokenizer is trained on at least one")
    if kind == "subword" and vocab_size < _MIN_SIZE:
        raise ConfigError(f"vocab_size is {vocab_size}; subwords need at least {_MIN_SIZE} for all bytes")
    if vocab_size <= len(ENCODER_SPECIALS):
        raise ConfigError(
            f"vocab_size is {vocab_size}; expected more than {len(ENCODER_SPECIALS)}: so many are special"
        )

    def train() -> bytes:
        if kind == "word":
            pair = (
                _word_level(sentences, vocab_size, ENCODER_SPECIALS),
                _word_level(sentences, vocab_size, WORD_DECODER_SPECIALS),
            )
        else:
            # BPE for the encoder as well: the WordPiece trainer of tokenizers numbers its tokens differently
            # each time, and a run could not be resumed.
            pair = tuple(
                _byte_level(sentences, vocab_size, specials)
                for specials in (ENCODER_SPECIALS, DECODER_SPECIALS)
            )
        return json.dumps([raw.to_str() for raw in pair]).encode()

    if len(sentences) < WORTH_CACHING:
        trained = train()
    else:
        key = key_of([_FORMAT, kind, str(vocab_size), *sentences])
        trained = cached_bytes(f"tokenizers-{key}.json", train)
    encoder, decoder = json.loads(trained)
    return Tokenizers(
        _wrapped(encoder, ENCODER_SPECIALS),
        _wrapped(decoder, WORD_DECODER_SPECIALS if kind == "word" else DECODER_SPECIALS),
    )


def _word_level(sentences: Sequence[str], vocab_size: int, specials: dict[str, str]) -> Any:
    import tokenizers

    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token=specials["unk_token"]))
    raw.normalizer = tokenizers.normalizers.Sequence(
        [
            tokenizers.normalizers.Replace(tokenizers.Regex(rf"(?<=\w\w){ending}(?!\S)"), f" {_JOIN}{ending}")
            for ending in ENDINGS
        ]
    )
    raw.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    raw.decoder = tokenizers.decoders.WordPiece(prefix=_JOIN, cleanup=False)
    raw.train_from_iterator(
        sentences,
        tokenizers.trainers.WordLevelTrainer(
            vocab_size=vocab_size, special_tokens=list(specials.values()), show_progress=False
        ),
    )
    if "cls_token" in specials:
        _frame(raw)
    return raw


def _byte_level(sentences: Sequence[str], vocab_size: int, specials: dict[str, str]) -> Any:
    import tokenizers

    raw = tokenizers.Tokenizer(tokenizers.models.BPE())
    # With a space in front, the first word of a text is the same token as anywhere else.
    raw.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    raw.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.ByteLevel(), tokenizers.decoders.Strip(content=" ", left=1, right=0)]
    )
    raw.train_from_iterator(
        sentences,
        tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(specials.values()),
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if "cls_token" in specials:
        _frame(raw)
    return raw


def _frame(raw: Any) -> None:
    """Make a tokenizer put ``[CLS]`` and ``[SEP]`` around a text."""
    import tokenizers

    first, last = ENCODER_SPECIALS["cls_token"], ENCODER_SPECIALS["sep_token"]
    raw.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{first} $A {last}",
        special_tokens=[(word, raw.token_to_id(word)) for word in (first, last)],
    )


def _wrapped(serialized: str, specials: dict[str, str]) -> Any:
    """Return a serialized tokenizer as one of transformers."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = tokenizers.Tokenizer.from_str(serialized)
    return PreTrainedTokenizerFast(tokenizer_object=raw, clean_up_tokenization_spaces=False, **specials)
