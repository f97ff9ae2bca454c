"""Analogies on the grammar: one factor of trained sentences changes into a held-out one; and their score."""

import pytest

from fq_toolkit.optimus.data.grammar import FACTORS, GrammarCorpus, parse, sentences
from fq_toolkit.optimus.metrics.analogies import draw_analogies, score_analogies


@pytest.fixture(scope="module")
def corpus() -> GrammarCorpus:
    return GrammarCorpus()


def test_analogies_change_one_factor_of_trained_sentences_into_a_held_out_one(corpus: GrammarCorpus) -> None:
    trained, questions = set(corpus.train), draw_analogies(corpus, 60, seed=3)
    for a, b, c, factor, expected in questions:
        assert {a, b, c} <= trained
        assert expected in set(corpus.held_out_factors)
        one, other, start = parse(a), parse(b), parse(c)
        assert one is not None
        assert other is not None
        assert start is not None
        assert [f for f in FACTORS if getattr(one, f) != getattr(other, f)] == [factor]
        assert [f for f in FACTORS if getattr(start, f) != getattr(expected, f)] == [factor]
        assert getattr(start, factor) == getattr(one, factor)
        assert getattr(expected, factor) == getattr(other, factor)
    assert {question.factor for question in questions} == set(FACTORS)
    assert draw_analogies(corpus, 60, seed=3) == questions != draw_analogies(corpus, 60, seed=4)


def test_scores(corpus: GrammarCorpus) -> None:
    questions = draw_analogies(corpus, 12, seed=0)
    perfect = score_analogies(questions, [sentences(question.expected)[-1] for question in questions])
    assert perfect[:4] == (1, 1, 1, 1)
    assert set(perfect.by_factor.values()) == {1}
    unchanged = score_analogies(questions, [question.c for question in questions])
    assert unchanged[:4] == (0, 0, 1, 1)
    assert score_analogies(questions, ["no such sentence"] * 12)[:4] == (0, 0, 0, 0)
    one_right = score_analogies(questions[:2], [sentences(questions[0].expected)[0], questions[1].c])
    assert one_right.accuracy == 0.5
    assert one_right.by_factor == {"subject": 1, "number": 0}
    with pytest.raises(ValueError, match="12 analogies and 1 answers"):
        score_analogies(questions, ["a girl runs ."])
