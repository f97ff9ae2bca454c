"""Sentences in any container mean the same, and what is text inside them stays text."""

import collections
from typing import Any

import numpy as np
import pytest
import torch

from fq_toolkit.optimus.data.tokenized import tokenize_corpus
from fq_toolkit.optimus.data.tokenizer_training import train_tokenizers
from fq_toolkit.optimus.metrics.language_metrics import measure_language
from fq_toolkit.optimus.metrics.text_metrics import corpus_bleu, distinct_ngrams, self_bleu
from fq_toolkit.optimus.model.batch import Tokenizers, make_batch, text_ids
from tests.optimus.toys import TEXTS, toy_tokenizers, toy_vae


class Labelled(collections.abc.Sequence):
    """Indexed by labels that are not positions, and iterated in order: what a pandas Series is."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def __iter__(self) -> Any:
        return iter(self._texts)

    def __getitem__(self, label: Any) -> Any:
        if isinstance(label, slice):
            return Labelled(self._texts[label])
        return self._texts[len(self._texts) - 1 - label]

    def __bool__(self) -> bool:
        raise ValueError("the truth value is ambiguous")


CONTAINERS: dict[str, Any] = {"series": Labelled, "array": np.array, "tuple": tuple, "generator": iter}


@pytest.mark.parametrize("kind", ["series", "array", "tuple", "generator"])
def test_containers_of_sentences_mean_the_same(kind: str) -> None:
    vae, made = toy_vae(), CONTAINERS[kind]
    assert torch.equal(vae.encode(made(TEXTS)).mean, vae.encode(TEXTS).mean)
    assert vae.reconstruct(made(TEXTS), max_new_tokens=5) == vae.reconstruct(TEXTS, max_new_tokens=5)
    draws = [torch.Generator().manual_seed(0) for _ in range(4)]
    likelihoods = [
        vae.log_likelihood(t, iw=2, generator=g) for t, g in zip((made(TEXTS), TEXTS), draws, strict=False)
    ]
    assert torch.equal(*likelihoods)
    scores = [
        measure_language(vae, t, draws=2, generator=g)
        for t, g in zip((made(TEXTS), TEXTS), draws[2:], strict=True)
    ]
    assert scores[0] == scores[1]
    turned = TEXTS[1:] + TEXTS[:1]
    assert vae.analogy(made(TEXTS), made(turned), made(TEXTS)) == vae.analogy(TEXTS, turned, TEXTS)
    one, other = (make_batch(t, vae.tokenizers, max_length=20) for t in (made(TEXTS), TEXTS))
    assert torch.equal(one.decoder_ids, other.decoder_ids)
    data = [tokenize_corpus(t, vae.tokenizers, max_length=20) for t in (made(TEXTS), TEXTS)]
    assert data[0].fingerprint() == data[1].fingerprint()
    trained = [train_tokenizers(t, kind="word") for t in (made(TEXTS), TEXTS)]
    assert trained[0].decoder.get_vocab() == trained[1].decoder.get_vocab()
    assert distinct_ngrams(made(TEXTS), 2) == distinct_ngrams(TEXTS, 2)
    assert self_bleu(made(TEXTS)) == self_bleu(TEXTS)
    assert corpus_bleu(made(TEXTS), [made([t]) for t in TEXTS]) == corpus_bleu(TEXTS, [[t] for t in TEXTS])


@pytest.mark.parametrize(
    "texts", [{"a man": 1}, {"a man", "two dogs"}, "a man", 3, np.array([["a man", "two dogs"]])]
)
def test_what_holds_no_ordered_sentences_is_refused(texts: Any) -> None:
    with pytest.raises(TypeError, match="expected"):
        toy_vae().encode(texts)


def test_a_table_is_refused_and_its_column_is_named() -> None:
    class Frame(dict):
        columns = ("text", "label")

    with pytest.raises(TypeError, match="one column of it"):
        toy_vae().encode(Frame(text=TEXTS))


def tokenizers_of(kind: str) -> Tokenizers:
    if kind == "toy":
        return toy_tokenizers()
    return train_tokenizers(TEXTS, 300, kind="word" if kind == "word" else "subword")


@pytest.mark.parametrize("kind", ["toy", "word", "subword"])
def test_control_tokens_inside_a_sentence_are_text(kind: str) -> None:
    pair = tokenizers_of(kind)
    for tokenizer in pair:
        control = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        words = [tokenizer.convert_ids_to_tokens(token) for token in control]
        for word in words:
            (ids,) = text_ids([f"a man {word} runs"], tokenizer)
            assert not control & set(ids), word
            assert len(ids) > len(text_ids(["a man runs"], tokenizer)[0]), "the word must not vanish"
    if kind == "subword":
        (ids,) = text_ids(["a man <EOS> runs"], pair.decoder)
        assert pair.decoder.decode(ids).strip() == "a man <EOS> runs"


def test_a_sentence_with_eos_in_it_keeps_its_end() -> None:
    vae = toy_vae()
    batch = vae.batch(["a man <EOS> runs <PAD> .", "a man runs ."])
    eos = vae.tokenizers.decoder.eos_token_id
    assert (batch.decoder_ids == eos).sum(1).tolist() == [1, 1]
