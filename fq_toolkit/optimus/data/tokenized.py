"""The token ids of a corpus: computed once, cached, and cut into batches."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fq_toolkit.optimus.data.checked_cache import cached_bytes, key_of
from fq_toolkit.optimus.model.batch import TextBatch, Tokenizers, TokenRows, as_list, collate, tokenize

# Fewer sentences than this are tokenized in under a second and not worth a file in the cache.
WORTH_CACHING = 20_000
_CHUNK = 10_000
_FORMAT = "2"


class Ragged(NamedTuple):
    """Rows of different lengths, concatenated: row i is ``flat[ends[i - 1] : ends[i]]``."""

    flat: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "Ragged":
        """Concatenate rows."""
        # int32 holds every vocabulary; lists of Python integers would take many times the memory.
        flat = [token for row in rows for token in row]
        return cls(np.array(flat, dtype=np.int32), np.cumsum([len(row) for row in rows], dtype=np.int64))

    def row(self, index: int) -> list[int]:
        """Return one row."""
        return self.flat[self.ends[index - 1] if index else 0 : self.ends[index]].tolist()


class TokenizedTexts:
    """A corpus as token ids, special tokens included.

    Args:
        encoder: ids for the encoder, one row for each sentence.
        decoder: ids for the decoder, one row for each sentence.
        tokenizers: that made them.
        too_long: how many sentences were left out because they have too many tokens.
    """

    def __init__(self, encoder: Ragged, decoder: Ragged, tokenizers: Tokenizers, *, too_long: int) -> None:
        self.encoder, self.decoder, self.tokenizers, self.too_long = encoder, decoder, tokenizers, too_long

    def __len__(self) -> int:
        return len(self.decoder.ends)

    def lengths(self) -> Tensor:
        """Return the number of decoder tokens of each sentence, with BOS and EOS, int64 (N,)."""
        return torch.from_numpy(np.diff(self.decoder.ends, prepend=0))

    def batch(self, rows: Sequence[int] | Tensor) -> TextBatch:
        """Return the padded batch of these rows, on the CPU."""
        chosen = [int(row) for row in rows]
        read, written = ([part.row(i) for i in chosen] for part in (self.encoder, self.decoder))
        return collate(TokenRows(read, written, 0), self.tokenizers)

    def fingerprint(self) -> str:
        """Return a digest of the ids and of the tokenizers, which say what the ids mean."""
        parts = (self.encoder.flat, self.encoder.ends, self.decoder.flat, self.decoder.ends)
        return key_of([*_identities(self.tokenizers), *(part.tobytes() for part in parts)])


def tokenize_corpus(texts: Sequence[str], tokenizers: Tokenizers, *, max_length: int) -> TokenizedTexts:
    """Turn a corpus into token ids, or read them from the cache.

    A sentence with more than ``max_length`` tokens for either tokenizer, special ones included, is left out
    and counted: truncated, it would be another sentence.

    Args:
        texts: sentences.
        tokenizers: of encoder and decoder.
        max_length: most tokens of a sentence.

    Raises:
        ValueError: when a tokenizer lacks a special token.
    """
    texts = as_list(texts)
    if len(texts) < WORTH_CACHING:
        return _unpack(_make(texts, tokenizers, max_length), tokenizers)
    # The key holds everything that decides the ids, so that a cached file is never out of date.
    names = [_FORMAT, str(max_length), *_identities(tokenizers)]
    content = cached_bytes(
        f"tokens-{key_of([*names, *texts])}", lambda: _to_bytes(_make(texts, tokenizers, max_length))
    )
    return _unpack(_from_bytes(content), tokenizers)


def _identities(tokenizers: Tokenizers) -> list[str]:
    """Return everything about these tokenizers that decides the ids."""
    return [
        text
        for tokenizer in tokenizers
        for text in (tokenizer.backend_tokenizer.to_str(), str(sorted(tokenizer.special_tokens_map.items())))
    ]


def _make(texts: Sequence[str], tokenizers: Tokenizers, max_length: int) -> dict[str, np.ndarray]:
    """Return the arrays that a file of the cache holds."""
    encoder: list[list[int]] = []
    decoder: list[list[int]] = []
    for start in range(0, len(texts), _CHUNK):
        # Truncated to one token more than allowed, which shows which sentences are too long.
        rows = tokenize(texts[start : start + _CHUNK], tokenizers, max_length=max_length + 1)
        fit = [max(len(a), len(b)) <= max_length for a, b in zip(rows.encoder, rows.decoder, strict=True)]
        encoder += [row for row, fits in zip(rows.encoder, fit, strict=True) if fits]
        decoder += [row for row, fits in zip(rows.decoder, fit, strict=True) if fits]
    read, written = Ragged.of(encoder), Ragged.of(decoder)
    return {
        "encoder": read.flat,
        "encoder_ends": read.ends,
        "decoder": written.flat,
        "decoder_ends": written.ends,
        "too_long": np.array([len(texts) - len(decoder)]),
    }


def _to_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    from safetensors.numpy import save

    return bytes(save(arrays))


def _from_bytes(content: bytes) -> dict[str, np.ndarray]:
    from safetensors.numpy import load

    return dict(load(content))


def _unpack(arrays: dict[str, np.ndarray], tokenizers: Tokenizers) -> TokenizedTexts:
    return TokenizedTexts(
        Ragged(arrays["encoder"], arrays["encoder_ends"]),
        Ragged(arrays["decoder"], arrays["decoder_ends"]),
        tokenizers,
        too_long=int(arrays["too_long"][0]),
    )
