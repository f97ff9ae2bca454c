"""Sentences as token ids: frames, padding, masks, what is too long, what is refused."""

import string

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit.optimus.model.batch import (
    TextBatch,
    Tokenizers,
    by_length,
    collate,
    encoder_frame,
    make_batch,
    tokenize,
)
from tests.optimus.toys import TEXTS, WORDS, toy_tokenizers, word_tokenizer

TOKENIZERS = toy_tokenizers()
SENTENCES = st.lists(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join), min_size=1, max_size=6
)


@settings(max_examples=60, deadline=None)
@given(texts=SENTENCES, max_length=st.integers(3, 14))
def test_a_batch_is_what_the_definition_says(texts: list[str], max_length: int) -> None:
    batch = make_batch(texts, TOKENIZERS, max_length=max_length)
    cut = 0
    for row, text in enumerate(texts):
        words = text.split()
        for ids, mask, first, last, shift in (
            (batch.encoder_ids, batch.encoder_mask, 2, 3, 4),
            (batch.decoder_ids, batch.decoder_mask, 1, 2, 4),
        ):  # fmt: skip
            expected = [first, *(shift + WORDS.index(word) for word in words[: max_length - 2]), last]
            length = len(expected)
            assert ids[row, :length].tolist() == expected
            assert mask[row].tolist() == [1] * length + [0] * (ids.shape[1] - length)
            assert not ids[row, length:].any()
        cut += len(words) > max_length - 2
    assert batch.truncated == cut
    assert batch.decoder_ids.shape[1] == int(batch.decoder_mask.sum(1).max()), "no column of padding alone"


@settings(max_examples=30, deadline=None)
@given(texts=SENTENCES, cut=st.integers(0, 6))
def test_rows_do_not_know_each_other(texts: list[str], cut: int) -> None:
    whole = tokenize(texts, TOKENIZERS, max_length=8)
    parts = [tokenize(part, TOKENIZERS, max_length=8) for part in (texts[:cut], texts[cut:]) if part]
    assert whole.decoder == [row for part in parts for row in part.decoder]
    assert whole.encoder == [row for part in parts for row in part.encoder]
    assert whole.truncated == sum(part.truncated for part in parts)
    assert torch.equal(
        collate(whole, TOKENIZERS).decoder_ids, make_batch(texts, TOKENIZERS, max_length=8).decoder_ids
    )


def test_a_sentence_of_ten_thousand_words_is_cut_and_counted() -> None:
    batch = make_batch([" ".join(["dogs"] * 10_000), "a man"], TOKENIZERS, max_length=20)
    assert batch.decoder_ids.shape == batch.encoder_ids.shape == (2, 20)
    assert batch.truncated == 1
    assert batch.decoder_ids[0, -1] == TOKENIZERS.decoder.eos_token_id
    assert batch.encoder_ids[0, -1] == TOKENIZERS.encoder.sep_token_id


def test_tokenizers_with_a_template_are_not_framed_twice() -> None:
    import tokenizers

    framed = word_tokenizer(
        {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    )
    raw = framed.backend_tokenizer
    raw.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    assert encoder_frame(framed) == encoder_frame(TOKENIZERS.encoder) == ([2], [3])
    both = (
        make_batch(TEXTS, Tokenizers(t, TOKENIZERS.decoder), max_length=9)
        for t in (framed, TOKENIZERS.encoder)
    )
    first, second = both
    assert torch.equal(first.encoder_ids, second.encoder_ids)


def test_an_encoder_without_cls_keeps_its_own_ending() -> None:
    import tokenizers

    like_t5 = word_tokenizer({"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"})
    like_t5.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    batch = make_batch(["a man"], Tokenizers(like_t5, TOKENIZERS.decoder), max_length=9)
    assert batch.encoder_ids.tolist() == [[3, 4, 1]]


@pytest.mark.parametrize("template", ["<s> $A", "<s> $A </s>", "$A </s>", "</s> <s> $A", "$A </s> <s>", "$A"])
@pytest.mark.parametrize("cls", [{}, {"cls_token": "<s>"}, {"cls_token": "</s>"}])
@pytest.mark.parametrize("text", ["a man", "nowhere seen"])
def test_an_encoder_reads_what_its_own_tokenizer_makes(template: str, cls: dict[str, str], text: str) -> None:
    """Llama's puts <s> first and names no CLS, XLNet's puts its CLS last."""
    import tokenizers

    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    own = word_tokenizer({**names, **cls})
    own.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    (row,) = make_batch([text], Tokenizers(own, TOKENIZERS.decoder), max_length=9).encoder_ids.tolist()
    expected = own(text)["input_ids"]
    if cls and own.cls_token_id not in expected:
        expected = [own.cls_token_id, *expected]  # it was trained without a template
    assert row == expected


def test_byte_level_text_of_any_kind_becomes_tokens() -> None:
    from fq_toolkit.optimus.data.tokenizer_training import train_tokenizers

    trained = train_tokenizers(TEXTS, 300)
    for text in ("Ünïcödé 漢字 \U0001f600", "tab\tand\x00null", string.printable.strip()):
        batch = make_batch([text], trained, max_length=400)
        assert batch.truncated == 0
        bare = batch.decoder_ids[0, 1:-1]
        assert trained.decoder.decode(bare).split() == text.split()


@pytest.mark.parametrize("missing", ["bos_token", "eos_token", "pad_token"])
def test_a_decoder_without_a_special_token_is_refused(missing: str) -> None:
    names = {"pad_token": "<PAD>", "bos_token": "<BOS>", "eos_token": "<EOS>", "unk_token": "<UNK>"}
    del names[missing]
    bad = Tokenizers(TOKENIZERS.encoder, word_tokenizer(names))
    with pytest.raises(
        ValueError, match=f"has no {missing[:3].upper()} token; add them with .*add_text_tokens"
    ):
        make_batch(["a man"], bad, max_length=9)


def test_bad_input_is_named() -> None:
    with pytest.raises(TypeError, match=r"got the string 'a man'; put it in a list"):
        make_batch("a man", TOKENIZERS, max_length=9)
    with pytest.raises(ValueError, match="at least one sentence, got none"):
        make_batch([], TOKENIZERS, max_length=9)
    with pytest.raises(ValueError, match="sentence 1 is empty; leave empty lines out"):
        make_batch(["a man", " \t\n", "dogs"], TOKENIZERS, max_length=9)
    with pytest.raises(TypeError, match="sentence 0 is int, expected str"):
        make_batch([3], TOKENIZERS, max_length=9)  # type: ignore[list-item]
    with pytest.raises(
        ValueError, match="max_length must be at least 3, one token and the special ones; got 2"
    ):
        make_batch(["a man"], TOKENIZERS, max_length=2)


def test_moving_keeps_everything() -> None:
    batch = make_batch([" ".join(WORDS), "a man"], TOKENIZERS, max_length=9)
    moved = batch.to("meta")
    assert isinstance(moved, TextBatch)
    assert moved.truncated == batch.truncated == 1
    assert all(tensor.is_meta for tensor in moved[:4])
    assert [tensor.shape for tensor in moved[:4]] == [tensor.shape for tensor in batch[:4]]


@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=20), size=st.integers(1, 7))
def test_by_length_goes_through_every_row_once_and_in_order_of_length(lengths: list[int], size: int) -> None:
    texts = ["x" * length for length in lengths]
    groups = list(by_length(texts, size))
    rows = [row for group in groups for row in group]
    assert sorted(rows) == list(range(len(texts)))
    assert [len(texts[row]) for row in rows] == sorted(lengths)
    assert max(len(group) for group in groups) <= size
