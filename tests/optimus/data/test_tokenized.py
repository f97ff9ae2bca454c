"""Tokenizers trained in place, token ids and their cache."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fq_toolkit.optimus.data import checked_cache, tokenized, tokenizer_training
from fq_toolkit.optimus.data.checked_cache import cached_bytes, key_of
from fq_toolkit.optimus.data.grammar import GrammarCorpus
from fq_toolkit.optimus.data.tokenized import tokenize_corpus
from fq_toolkit.optimus.data.tokenizer_training import Kind, train_tokenizers
from fq_toolkit.optimus.model.batch import make_batch
from fq_toolkit.training.errors import ConfigError

TEXTS = GrammarCorpus().train[::40]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(checked_cache, "cache_folder", lambda: tmp_path)
    return tmp_path / "optimus"


@pytest.mark.parametrize("kind", ["word", "subword"])
def test_what_is_written_is_read_back(kind: Kind) -> None:
    tokenizers = train_tokenizers(TEXTS, 400, kind=kind)
    batch = make_batch(TEXTS, tokenizers, max_length=40)
    decoder, encoder = tokenizers.decoder, tokenizers.encoder
    assert decoder.batch_decode(batch.decoder_ids, skip_special_tokens=True) == TEXTS
    assert (batch.decoder_ids[:, 0] == decoder.bos_token_id).all()
    last = batch.decoder_mask.sum(1) - 1
    assert (batch.decoder_ids.gather(1, last[:, None]) == decoder.eos_token_id).all()
    assert (batch.encoder_ids[:, 0] == encoder.cls_token_id).all()
    assert not (batch.encoder_ids == encoder.unk_token_id).any()
    assert {decoder.pad_token_id, decoder.bos_token_id, decoder.eos_token_id} == {0, 1, 2}
    assert len(decoder) <= 400


@given(st.text(st.characters(exclude_categories=("Cs", "Cc", "Z")), min_size=1, max_size=20))
def test_subwords_can_say_everything(text: str) -> None:
    decoder = train_tokenizers(TEXTS[:20], 300).decoder
    assert decoder.decode(decoder(text)["input_ids"]) == text


def test_endings_are_tokens_of_their_own() -> None:
    texts = ["two girls jumped across the bus stop", "a girl jump", "is red"]
    tokenizers = train_tokenizers(texts, kind="word")
    ids = tokenizers.decoder(texts)["input_ids"]
    words = [tokenizers.decoder.convert_ids_to_tokens(row) for row in ids]
    assert words[0] == "two girl ##s jump ##ed acros ##s the bu ##s stop".split()
    assert words[1:] == [["a", "girl", "jump"], ["is", "red"]]
    assert tokenizers.decoder.batch_decode(ids) == texts


def test_words_never_seen_become_the_unknown_one() -> None:
    tokenizers = train_tokenizers(TEXTS, kind="word")
    ids = tokenizers.encoder("a zebra runs .")["input_ids"]
    assert ids.count(tokenizers.encoder.unk_token_id) == 1


def test_training_is_repeatable_and_checks_its_input() -> None:
    one, other = (train_tokenizers(TEXTS, 350) for _ in range(2))
    for a, b in zip(one, other, strict=True):
        assert a.backend_tokenizer.to_str() == b.backend_tokenizer.to_str()
    with pytest.raises(ConfigError, match="at least one"):
        train_tokenizers([])
    with pytest.raises(ConfigError, match="at least 300"):
        train_tokenizers(TEXTS, 100)


def test_batches_are_those_of_the_texts() -> None:
    tokenizers = train_tokenizers(TEXTS, kind="word")
    data = tokenize_corpus(TEXTS, tokenizers, max_length=40)
    rows = torch.tensor([3, 0, 17])
    expected = make_batch([TEXTS[i] for i in rows], tokenizers, max_length=40)
    for ours, theirs in zip(data.batch(rows)[:4], expected[:4], strict=True):
        assert torch.equal(ours, theirs)
    assert len(data) == len(TEXTS)
    assert data.lengths().tolist() == [len(tokenizers.decoder(text)["input_ids"]) + 2 for text in TEXTS]


def test_sentences_that_are_too_long_are_counted_and_left_out() -> None:
    tokenizers = train_tokenizers(TEXTS, kind="word")
    edge = "a " * 8 + "dog"  # nine words: eleven tokens
    data = tokenize_corpus([edge, "a dog", "a " * 10_000, edge + " ."], tokenizers, max_length=11)
    assert data.lengths().tolist() == [11, 4]
    assert data.too_long == 2


def test_the_cache_gives_the_same_and_repairs_itself(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (tokenized, tokenizer_training):
        monkeypatch.setattr(module, "WORTH_CACHING", 2)
    fresh = tokenize_corpus(TEXTS, train_tokenizers(TEXTS, kind="word"), max_length=12)
    names = sorted(path.name for path in cache.iterdir())
    assert [name.partition("-")[0] for name in names] == ["tokenizers", "tokens"]
    made = {path: path.read_bytes() for path in cache.iterdir()}

    def forbidden(*_: object) -> None:
        raise AssertionError("not read from the cache")

    with monkeypatch.context() as patch:
        patch.setattr(tokenized, "_make", forbidden)
        patch.setattr(tokenizer_training, "_word_level", forbidden)
        again = tokenize_corpus(TEXTS, train_tokenizers(TEXTS, kind="word"), max_length=12)
    assert again.fingerprint() == fresh.fingerprint()
    assert again.too_long == fresh.too_long > 0
    for path, data in made.items():
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    repaired = tokenize_corpus(TEXTS, train_tokenizers(TEXTS, kind="word"), max_length=12)
    assert repaired.fingerprint() == fresh.fingerprint()
    assert {path: path.read_bytes() for path in cache.iterdir()} == made
    other = tokenize_corpus(TEXTS, train_tokenizers(TEXTS, kind="word"), max_length=13)
    assert other.fingerprint() != fresh.fingerprint()


def test_a_cache_that_cannot_be_written_is_not_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(checked_cache, "cache_folder", lambda: tmp_path / "file")
    assert cached_bytes("name", lambda: b"content") == b"content"
    assert "not kept for the next time" in caplog.text


@given(st.lists(st.text(max_size=3), max_size=4), st.lists(st.text(max_size=3), max_size=4))
def test_keys_differ_where_the_parts_do(one: list[str], other: list[str]) -> None:
    assert (key_of(one) == key_of(other)) == (one == other)
