"""Vocabularies: BERT's words and pieces in every language, unchanged numbers, encoding, files."""

import copy
import json
import pickle
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit.prevalent import DataError, MiniWorld, Vocabulary, load_ndh, load_r2r
from fq_toolkit.prevalent.text.vocabulary import SPECIALS

SMALL = Vocabulary.train(["go to the sofa , then turn left .", "walk past the lamp and stop ."])
WORDS = st.lists(st.sampled_from(SMALL.tokens[5:]), min_size=1, max_size=30)
_WORD = re.compile(r"<\w+>|\w+|[^\w\s]|_")


def plain_words(text: str) -> list[str]:
    """Return words as a regular expression finds them in English."""
    plain = unicodedata.normalize("NFD", text.lower())
    return _WORD.findall("".join(letter for letter in plain if unicodedata.category(letter) != "Mn"))


def plain_pieces(vocabulary: Vocabulary, text: str) -> list[int]:
    """Return the longest known beginning of each word, then the longest known rest, and so on."""
    numbers = {token: number for number, token in enumerate(vocabulary.tokens)}

    def split(word: str) -> list[int]:
        found, start = [], 0
        while start < len(word):
            mark = "##" if start else ""
            ends = (e for e in range(len(word), start, -1) if mark + word[start:e] in numbers)
            end = next(ends, None)
            if end is None:
                return [vocabulary.unk]
            found.append(numbers[mark + word[start:end]])
            start = end
        return found if len(word) <= 100 else [vocabulary.unk]

    found: list[int] = []
    for word in plain_words(text):
        tag = word[0] == "<" and len(word) > 1 and word not in numbers
        for part in ("<", word[1:-1], ">") if tag else (word,):
            found += split(part)
    return found


def pieces_of(words: set[str]) -> Vocabulary:
    """Return a vocabulary of half the words, and of beginnings and rests of the others."""
    ordered = sorted(words)
    tokens = dict.fromkeys([*SPECIALS, "<", ">", "<nav>", "<tar>", *ordered[::2]])
    for word in ordered[1::3]:
        tokens |= dict.fromkeys([word[: (len(word) + 1) // 2], "##" + word[(len(word) + 1) // 2 :]])
    return Vocabulary(token for token in tokens if token != "##")


@pytest.mark.parametrize("every", [40, pytest.param(1, marks=pytest.mark.slow)])
def test_all_texts_keep_their_numbers(tasks: Path, every: int) -> None:
    texts = []
    for path in sorted(tasks.glob("*.json")):
        items = load_r2r(path) if path.name.startswith("R2R") else load_ndh(path)
        texts += [item.instruction for item in items]
    texts = list(dict.fromkeys(texts))
    assert len(texts) > 20_000
    texts = texts[::every]
    trained = Vocabulary.train(texts)
    assert set(trained.tokens[5:]) == {word for text in texts for word in plain_words(text)}
    for vocabulary in (trained, pieces_of(set(trained.tokens[5:]))):
        for text in texts:
            assert vocabulary.pieces(text) == plain_pieces(vocabulary, text)


@settings(deadline=None)
@given(st.text("abe<>navNAV .,'éÉ-3\t", max_size=30))
def test_english_keeps_its_numbers(text: str) -> None:
    vocabulary = pieces_of({"a", "b", "nav", "tar", "ab", "eb", "navab", "abnav", ".", ",", "'", "-", "3"})
    assert vocabulary.pieces(text) == plain_pieces(vocabulary, text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("बाईं ओर मुड़ें।", 4),  # "turn left" in Hindi, and its full stop
        ("ఎడమ వైపు తిరగండి", 3),  # the same in Telugu
        ("左转", 2),
        ("l’entrée", 3),
    ],
)
def test_words_of_other_languages_stay_whole(text: str, words: int) -> None:
    vocabulary = Vocabulary.train([text])
    assert len(vocabulary) == 5 + words
    assert len(vocabulary.pieces(text)) == words
    assert vocabulary.unk not in vocabulary.pieces(text)


def test_pieces_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers import BertTokenizer

    text = "Turn left, ऊपर जाएं और रुकें। naïve №5 <hall> [SEP"
    vocabulary = Vocabulary(
        [*SPECIALS, *"turn left , . < > [ 5".split(), "ऊपर", "जाए", "##ए", "और", "naive", "hall", "sep"]
    )
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary.tokens), encoding="utf-8")
    other = BertTokenizer(str(tmp_path / "vocab.txt"), do_lower_case=True)
    assert vocabulary.pieces(text) == other.encode(text, add_special_tokens=False)


def test_copies_are_equal(tmp_path: Path) -> None:
    vocabulary = Vocabulary.train(["go left"])
    vocabulary.pieces("go")
    for other in (copy.deepcopy(vocabulary), pickle.loads(pickle.dumps(vocabulary))):
        assert other == vocabulary
        assert other.pieces("go left now") == vocabulary.pieces("go left now")
    assert json.loads(vocabulary.save(tmp_path / "v.json").read_text()) == list(vocabulary.tokens)


@settings(deadline=None, max_examples=50)
@given(words=WORDS)
def test_known_texts_make_the_round_trip(words: list[str]) -> None:
    text = " ".join(words)
    ids = SMALL.encode(text)
    assert len(ids) == 80
    assert ids[0] == SMALL.cls
    assert ids[len(words) + 1] == SMALL.sep
    assert set(ids[len(words) + 2 :]) <= {SMALL.pad}
    assert SMALL.decode(ids) == text


def test_long_texts_are_cut_on_the_side_that_is_asked_for() -> None:
    text = " ".join(["sofa"] * 5 + ["lamp"] * 5)
    with pytest.raises(
        ValueError, match="the text has 10 tokens, more than the limit of 5: raise length to 12"
    ):
        SMALL.encode(text, length=7)
    assert SMALL.decode(SMALL.encode(text, length=12)) == text
    end = SMALL.encode(text, length=7, cut="end")
    start = SMALL.encode(text, length=7, cut="start")
    assert SMALL.decode(end) == "sofa sofa sofa sofa sofa"
    assert SMALL.decode(start) == "lamp lamp lamp lamp lamp"
    assert (end[-1], start[-1]) == (SMALL.sep, SMALL.sep)


def test_files_make_the_round_trip(tmp_path: Path) -> None:
    path = SMALL.save(tmp_path / "vocabulary.json")
    assert Vocabulary.from_file(path) == SMALL
    text = tmp_path / "vocab.txt"
    text.write_text("\n".join(SMALL.tokens) + "\n", encoding="utf-8")
    assert Vocabulary.from_file(text) == SMALL


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
    tokens += "walk ##ing past the sofa ##s cafe , . ' t don < > nav".split()
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


def test_a_length_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="length must be at least 3"):
        SMALL.encode("sofa", length=2)
