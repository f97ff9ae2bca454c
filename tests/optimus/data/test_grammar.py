"""The embedded language: sentences and factors are one-to-one, its parts are apart, analogies are right."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fq_toolkit.optimus.data.grammar import (
    FACTORS,
    Factors,
    GrammarCorpus,
    combinations,
    parse,
    score_analogies,
    sentences,
)

ANY = st.builds(Factors, *(st.sampled_from(values) for values in FACTORS.values()))


@pytest.fixture(scope="module")
def corpus() -> GrammarCorpus:
    return GrammarCorpus()


@given(ANY)
def test_what_is_said_is_understood(factors: Factors) -> None:
    for sentence in sentences(factors):
        assert parse(sentence) == factors
        assert parse(f"  {sentence.replace(' ', '  ')} ") == factors


def test_no_two_combinations_share_a_sentence() -> None:
    said = [sentence for factors in combinations() for sentence in sentences(factors)]
    assert len(set(said)) == len(said)


@given(ANY, st.data())
def test_a_word_too_few_is_not_understood(factors: Factors, data: st.DataObject) -> None:
    words = sentences(factors)[0].split()
    gone = data.draw(st.integers(0, len(words) - 1))
    # Leaving out a mood or "will" may leave another sentence, never one of the same meaning.
    assert parse(" ".join(words[:gone] + words[gone + 1 :])) != factors
    assert parse(" ".join([*words, "."])) is None


def test_the_parts_share_no_combination_and_together_are_everything(corpus: GrammarCorpus) -> None:
    trained = {parse(sentence) for sentence in corpus.train}
    held_out = {parse(sentence) for sentence in corpus.held_out}
    assert not trained & held_out
    assert trained | held_out == set(combinations())
    assert GrammarCorpus().held_out == corpus.held_out


def test_every_pair_of_values_is_trained(corpus: GrammarCorpus) -> None:
    def pairs(some: list[Factors]) -> set[tuple[int, str, int, str]]:
        return {(i, f[i], j, f[j]) for f in some for i in range(len(f)) for j in range(i)}

    assert pairs(corpus.train_factors) == pairs(list(combinations()))


def test_analogies_change_one_factor_of_trained_sentences_into_a_held_out_one(corpus: GrammarCorpus) -> None:
    trained, questions = set(corpus.train), corpus.analogies(60, seed=3)
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
    assert corpus.analogies(60, seed=3) == questions != corpus.analogies(60, seed=4)


def test_scores(corpus: GrammarCorpus) -> None:
    questions = corpus.analogies(12, seed=0)
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


def test_the_words_of_the_examples_are_in_the_language() -> None:
    for sentence in ("a girl runs .", "two girls run .", "a dog jumps .", "two dogs jump .",
                     "a man rides a horse .", "two dogs play in the snow ."):  # fmt: skip
        assert parse(sentence)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_a_share_that_leaves_nothing_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        GrammarCorpus(share)
