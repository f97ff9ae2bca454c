"""Masked words and the vocabulary they come from."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit.prevalent import DataError, MiniWorld, Vocabulary
from fq_toolkit.prevalent.tasks.pretraining.steps import WordMasker

TEXTS = ["go to the sofa , then turn left .", "walk past the lamp and stop ."]
VOCABULARY = Vocabulary.train(TEXTS)
WORDS = st.lists(st.sampled_from(VOCABULARY.tokens[5:]), min_size=1, max_size=30)


def rows(count: int) -> torch.Tensor:
    return torch.tensor([VOCABULARY.encode(TEXTS[i % 2]) for i in range(count)])


def test_masks_have_the_published_rates() -> None:
    ids = rows(4000)
    hidden, labels = WordMasker(VOCABULARY, share=0.15)(ids)
    words = ids > VOCABULARY.mask
    chosen = labels >= 0
    assert chosen[words].float().mean().item() == pytest.approx(0.15, abs=0.006)
    share = chosen.sum().item()
    assert (hidden[chosen] == VOCABULARY.mask).sum().item() / share == pytest.approx(0.8, abs=0.02)
    same = (hidden[chosen] == ids[chosen]).sum().item() / share
    assert same == pytest.approx(0.1 + 0.1 / (len(VOCABULARY) - 5), abs=0.02)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999), share=st.sampled_from([0.15, 0.6, 1.0]))
def test_special_tokens_are_neither_chosen_nor_drawn(seed: int, share: float) -> None:
    torch.manual_seed(seed)
    ids = rows(20)
    hidden, labels = WordMasker(VOCABULARY, share=share)(ids)
    special = ids < 5
    assert (labels[special] == -1).all()
    assert torch.equal(hidden[special], ids[special])
    assert torch.equal(hidden[labels < 0], ids[labels < 0])
    assert torch.equal(labels[labels >= 0], ids[labels >= 0])
    drawn = hidden[~special]
    assert ((drawn >= 5) | (drawn == VOCABULARY.mask)).all()


def test_masks_are_fresh_each_time_and_follow_the_seed() -> None:
    masker, ids = WordMasker(VOCABULARY), rows(50)
    first, second = masker(ids), masker(ids)
    assert not torch.equal(first[1], second[1])
    torch.manual_seed(0)
    again = masker(ids)
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(again, masker(ids), strict=True))


@settings(deadline=None, max_examples=50)
@given(words=WORDS)
def test_known_texts_make_the_round_trip(words: list[str]) -> None:
    text = " ".join(words)
    ids = VOCABULARY.encode(text)
    assert len(ids) == 80
    assert ids[0] == VOCABULARY.cls
    assert ids[len(words) + 1] == VOCABULARY.sep
    assert set(ids[len(words) + 2 :]) <= {VOCABULARY.pad}
    assert VOCABULARY.decode(ids) == text


def test_long_texts_are_cut_on_the_side_that_is_asked_for() -> None:
    text = " ".join(["sofa"] * 5 + ["lamp"] * 5)
    with pytest.raises(
        ValueError, match="the text has 10 tokens, more than the limit of 5: raise length to 12"
    ):
        VOCABULARY.encode(text, length=7)
    assert VOCABULARY.decode(VOCABULARY.encode(text, length=12)) == text
    end = VOCABULARY.encode(text, length=7, cut="end")
    start = VOCABULARY.encode(text, length=7, cut="start")
    assert VOCABULARY.decode(end) == "sofa sofa sofa sofa sofa"
    assert VOCABULARY.decode(start) == "lamp lamp lamp lamp lamp"
    assert (end[-1], start[-1]) == (VOCABULARY.sep, VOCABULARY.sep)


def test_files_make_the_round_trip(tmp_path: Path) -> None:
    path = VOCABULARY.save(tmp_path / "vocabulary.json")
    assert Vocabulary.from_file(path) == VOCABULARY
    text = tmp_path / "vocab.txt"
    text.write_text("\n".join(VOCABULARY.tokens) + "\n", encoding="utf-8")
    assert Vocabulary.from_file(text) == VOCABULARY


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}', "expected a JSON list of tokens"),
        ('["[PAD]", "a"]', r"missing: \[UNK\]"),
        ('["a", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]', "number 0 is 'a'"),
        ('["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "a"]', "'a' occurs twice"),
        ("[", "not valid JSON"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "v.json"
    path.write_text(content)
    with pytest.raises(DataError, match=rf"v\.json.*{message}"):
        Vocabulary.from_file(path)
    with pytest.raises(DataError, match="does not exist"):
        Vocabulary.from_file(tmp_path / "absent.json")


def test_pieces_are_those_of_berts_tokenizer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokens = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens += [
        "walk",
        "##ing",
        "past",
        "the",
        "sofa",
        "##s",
        "cafe",
        ",",
        ".",
        "'",
        "t",
        "don",
        "<",
        ">",
        "nav",
    ]
    vocabulary = Vocabulary(tokens)
    peer = transformers.BertTokenizer(vocab={token: i for i, token in enumerate(tokens)})
    assert Vocabulary.from_tokenizer(peer) == vocabulary
    for text in ("Walking past the sofas, don't", "the Café.", "walked xyz <NAV> the", "sofa sofas sofaing"):
        theirs = peer(text)["input_ids"]
        assert vocabulary.encode(text, length=40)[: len(theirs)] == theirs, text
    assert vocabulary.special_ids == set(range(6))


def test_a_tag_is_one_word_where_it_is_known() -> None:
    texts = ["<NAV> where is the sofa ? <ORA> go left ."]
    vocabulary = Vocabulary.train(texts)
    assert "<nav>" in vocabulary.tokens
    assert len(vocabulary.pieces("<nav> go")) == 2


def test_nothing_of_miniworld_is_unknown() -> None:
    vocabulary = Vocabulary.train(item.instruction for item in MiniWorld(0, num_scans=10).items(200))
    unseen = MiniWorld(99).items(20)
    assert all(vocabulary.unk not in vocabulary.encode(item.instruction) for item in unseen)


def test_a_vocabulary_without_words_is_refused() -> None:
    with pytest.raises(ValueError, match="no words"):
        WordMasker(Vocabulary.train([]))
    with pytest.raises(ValueError, match="length must be at least 3"):
        VOCABULARY.encode("sofa", length=2)
