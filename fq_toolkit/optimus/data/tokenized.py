"""The token ids of a corpus: made once, kept in the cache, cut into batches."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fq_toolkit.optimus.data.checked_cache import cached_bytes, key_of
from fq_toolkit.optimus.model.batch import TextBatch, Tokenizers, TokenRows, as_list, collate, tokenize

# Below this many sentences, making the ids takes less than a second, and no file is left for it.
WORTH_CACHING = 20_000
_CHUNK = 10_000
_FORMAT = "2"


class Ragged(NamedTuple):
    """Rows of unequal length end to end: row i is ``flat[ends[i - 1] : ends[i]]``."""

    flat: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "Ragged":
        """Pack rows."""
        flat = [token for row in rows for token in row]
        return cls(np.array(flat, dtype=np.int32), np.cumsum([len(row) for row in rows], dtype=np.int64))

    def row(self, index: int) -> list[int]:
        """Return one row."""
        return self.flat[self.ends[index - 1] if index else 0 : self.ends[index]].tolist()


class TokenizedTexts:
    """A corpus as token ids, special tokens included.

    Args:
        encoder: ids for the encoder, one row a sentence.
        decoder: ids for the decoder, one row a sentence.
        tokenizers: that made them.
        too_long: sentences that were left out because they have more than the permitted tokens.
    """

    def __init__(self, encoder: Ragged, decoder: Ragged, tokenizers: Tokenizers, *, too_long: int) -> None:
        self.encoder, self.decoder, self.tokenizers, self.too_long = encoder, decoder, tokenizers, too_long

    def __len__(self) -> int:
        return len(self.decoder.ends)

    def lengths(self) -> Tensor:
        """Return the decoder's tokens of each sentence, BOS and EOS among them, int64 (N,)."""
        return torch.from_numpy(np.diff(self.decoder.ends, prepend=0))

    def batch(self, rows: Sequence[int] | Tensor) -> TextBatch:
        """Return the padded batch of these rows, on the CPU."""
        chosen = [int(row) for row in rows]
        read, written = ([part.row(i) for i in chosen] for part in (self.encoder, self.decoder))
        return collate(TokenRows(read, written, 0), self.tokenizers)

    def fingerprint(self) -> str:
        """Return what two corpora of the same ids that mean the same, and only those, have in common."""
        parts = (self.encoder.flat, self.encoder.ends, self.decoder.flat, self.decoder.ends)
        return key_of([*_identities(self.tokenizers), *(part.tobytes() for part in parts)])


def tokenize_corpus(texts: Sequence[str], tokenizers: Tokenizers, *, max_length: int) -> TokenizedTexts:
    """Turn a corpus into token ids, or read them from the cache.

    A sentence of more than ``max_length`` tokens, special ones included, for either tokenizer is left out and
    counted: a sentence without its end is another one.

    Args:
        texts: sentences.
        tokenizers: of encoder and decoder.
        max_length: most tokens of a sentence.

    Raises:
        ValueError: when the tokenizers lack a special token.
    """
    texts = as_list(texts)
    if len(texts) < WORTH_CACHING:
        return _unpack(_make(texts, tokenizers, max_length), tokenizers)
    names = [_FORMAT, str(max_length), *_identities(tokenizers)]
    content = cached_bytes(
        f"tokens-{key_of([*names, *texts])}", lambda: _to_bytes(_make(texts, tokenizers, max_length))
    )
    return _unpack(_from_bytes(content), tokenizers)


def _identities(tokenizers: Tokenizers) -> list[str]:
    """Return what decides the ids that these tokenizers give."""
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
        # One token more than permitted stays, by which the sentences that are too long are known.
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
