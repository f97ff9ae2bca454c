"""Sentences as padded token ids, for the encoder and for the decoder.

The encoder reads ``[CLS] tokens [SEP]`` and the decoder ``<BOS> tokens <EOS>``; each has its own tokenizer.

Source: arXiv 2004.04092, section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fq_toolkit.layers.checks import at_least_one


class Tokenizers(NamedTuple):
    """The tokenizers of a sentence VAE, both fast ones of transformers.

    Attributes:
        encoder: for what is read; with CLS, SEP and PAD where the encoder was trained with them.
        decoder: for what is written; with PAD, BOS and EOS.
    """

    encoder: Any
    decoder: Any


class TextBatch(NamedTuple):
    """Sentences as the two networks see them, padded on the right.

    Attributes:
        encoder_ids: (B, S) token ids.
        encoder_mask: (B, S) 1 at tokens and 0 at padding.
        decoder_ids: (B, T) token ids, BOS first and EOS last.
        decoder_mask: (B, T) 1 at tokens, BOS and EOS among them, and 0 at padding.
        truncated: how many of the sentences were longer than ``max_length`` for one of the tokenizers and
            lost their end.
    """

    encoder_ids: Tensor
    encoder_mask: Tensor
    decoder_ids: Tensor
    decoder_mask: Tensor
    truncated: int = 0

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> TextBatch:
        """Return the batch on a device."""
        read, read_mask, written, written_mask = (
            tensor.to(device, non_blocking=non_blocking) for tensor in self[:4]
        )
        return TextBatch(read, read_mask, written, written_mask, self.truncated)


class TokenRows(NamedTuple):
    """Sentences as lists of token ids of different lengths, special tokens included.

    Attributes:
        encoder: one list per sentence.
        decoder: one list per sentence.
        truncated: how many of the sentences lost their end.
    """

    encoder: list[list[int]]
    decoder: list[list[int]]
    truncated: int


def make_batch(texts: Sequence[str], tokenizers: Tokenizers, *, max_length: int) -> TextBatch:
    """Tokenize and pad sentences.

    Args:
        texts: B sentences.
        tokenizers: of encoder and decoder.
        max_length: tokens per sentence at most, special ones included, for each of the two tokenizers.  A
            longer sentence keeps its beginning, is counted in ``truncated`` and still ends in EOS.

    Returns:
        The batch, on the CPU.

    Raises:
        TypeError: one string instead of several, or something that is not a string.
        ValueError: no sentence, an empty one, or a decoder tokenizer without PAD, BOS or EOS.

    Example:
        >>> from fq_toolkit.optimus import train_tokenizers
        >>> texts = ["a man runs .", "dogs play"]
        >>> batch = make_batch(texts, train_tokenizers(texts, kind="word"), max_length=16)
        >>> batch.decoder_ids.shape, batch.decoder_mask.sum(1).tolist()
        (torch.Size([2, 7]), [7, 5])
    """
    return collate(tokenize(texts, tokenizers, max_length=max_length), tokenizers)


def tokenize(texts: Sequence[str], tokenizers: Tokenizers, *, max_length: int) -> TokenRows:
    """Turn sentences into token ids with their special tokens; see `make_batch`."""
    texts = check_texts(texts)
    bos, eos, _ = decoder_specials(tokenizers.decoder)
    before, after = encoder_frame(tokenizers.encoder)
    least = 1 + max(2, len(before) + len(after))
    if max_length < least:
        raise ValueError(
            f"max_length must be at least {least}, one token and the special ones; got {max_length}"
        )
    encoder, cut_in_encoder = _framed(texts, tokenizers.encoder, before, after, max_length)
    decoder, cut_in_decoder = _framed(texts, tokenizers.decoder, [bos], [eos], max_length)
    cut = sum(a or b for a, b in zip(cut_in_encoder, cut_in_decoder, strict=True))
    return TokenRows(encoder, decoder, cut)


def collate(rows: TokenRows, tokenizers: Tokenizers) -> TextBatch:
    """Pad rows of token ids to rectangles; see `make_batch`."""
    pad = decoder_specials(tokenizers.decoder)[2]
    read = _pad(rows.encoder, tokenizers.encoder.pad_token_id or 0)  # masked: any id would do
    return TextBatch(*read, *_pad(rows.decoder, pad), truncated=rows.truncated)


def as_list(texts: Iterable[str]) -> list[str]:
    """Return sentences as a list, whatever holds them: a list, an array, a column of a table.

    A pandas Series is indexed by label, so that ``texts[row]`` may be another row: everything that indexes
    sentences uses this list.

    Raises:
        TypeError: one string, or something unordered, or something that does not iterate over its sentences.
    """
    if isinstance(texts, str):
        raise TypeError(f"expected several sentences, got the string {texts[:40]!r}; put it in a list")
    if hasattr(texts, "columns") or isinstance(texts, Mapping | Set):
        raise TypeError(
            f"expected a list of sentences, got a {type(texts).__name__}; give one column of it, or a list"
        )
    try:
        return list(texts)
    except TypeError:
        raise TypeError(f"expected a list of sentences, got {type(texts).__name__}") from None


def check_texts(texts: Iterable[str]) -> list[str]:
    """Return sentences as a list, and refuse what is no sentence.

    Raises:
        TypeError: as `as_list`, or something that is not a string.
        ValueError: no sentence, an empty one, or one that is not Unicode.
    """
    texts = as_list(texts)
    if not texts:
        raise ValueError("expected at least one sentence, got none")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"sentence {number} is {type(text).__name__}, expected str")
        if not text.strip():
            raise ValueError(f"sentence {number} is empty; leave empty lines out")
        if not is_unicode(text):
            raise ValueError(f"sentence {number} holds half of a surrogate pair, which no tokenizer takes")
    return texts


def is_unicode(text: str) -> bool:
    """Return whether a text can be encoded as UTF-8; one with an unpaired surrogate cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def by_length(texts: Sequence[str], size: int) -> Iterator[list[int]]:
    """Yield row numbers in groups of at most ``size``, texts of similar length together to save padding."""
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    for start in range(0, len(order), at_least_one("batch_size", size)):
        yield order[start : start + size]


def decoder_specials(tokenizer: Any) -> tuple[int, int, int]:
    """Return the ids of BOS, EOS and PAD.

    Raises:
        ValueError: the tokenizer lacks one of them.
    """
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    missing = [name for name, token in zip(("BOS", "EOS", "PAD"), ids, strict=True) if token is None]
    if missing:
        raise ValueError(
            f"the decoder's tokenizer ({type(tokenizer).__name__}) has no {' and no '.join(missing)} token; "
            "add them with fq_toolkit.optimus.add_text_tokens(tokenizer, decoder)"
        )
    return ids


def encoder_frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the ids that the encoder expects before and after a sentence, such as [CLS] and [SEP].

    They are found by tokenizing a word with and without them: no attribute of a tokenizer says it.
    """
    bare, framed = (
        list(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (False, True)
    )
    starts = range(len(framed) - len(bare) + 1)
    cut = next((start for start in starts if framed[start : start + len(bare)] == bare), 0)
    before, after = framed[:cut], framed[cut + len(bare) :]
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    if cls is not None and cls not in (*before, *after):  # has the tokens and no template
        before = [cls, *before]
        after = after if sep is None or sep in after else [*after, sep]
    return before, after


def text_ids(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Return the token ids of sentences, without special tokens around them.

    ``<EOS>`` or ``[SEP]`` inside a sentence is text: a subword tokenizer splits it, and for a word tokenizer
    it is unknown. As a control token it would end the sentence there, or pad it.
    """
    # verbose=False: a sentence beyond the model's length is cut and counted by the caller.
    rows = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)
    unknown = tokenizer.unk_token_id
    control = set(tokenizer.all_special_ids) - {unknown}
    if unknown is None:
        return [[token for token in ids if token not in control] for ids in rows["input_ids"]]
    return [[unknown if token in control else token for token in ids] for ids in rows["input_ids"]]


def _framed(
    texts: Sequence[str], tokenizer: Any, before: list[int], after: list[int], max_length: int
) -> tuple[list[list[int]], list[bool]]:
    """Return token ids with the special tokens around them, and which of the sentences were cut."""
    room = max_length - len(before) - len(after)
    bare = text_ids(texts, tokenizer)
    return [[*before, *ids[:room], *after] for ids in bare], [len(ids) > room for ids in bare]


def _pad(rows: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Return padded ids and their mask, (B, longest row)."""
    lengths = torch.tensor([len(row) for row in rows])
    width = int(lengths.max())
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    return ids, (torch.arange(width) < lengths[:, None]).long()
