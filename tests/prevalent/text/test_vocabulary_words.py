"""Words and pieces: BERT's, in every language, and the numbers that texts have always had."""

import copy
import json
import pickle
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit.prevalent import Vocabulary, load_ndh, load_r2r
from fq_toolkit.prevalent.text.vocabulary import SPECIALS

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
