"""The embedded language: sentences and factors are one-to-one, its parts are apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fq_toolkit.optimus.data.grammar import (
    FACTORS,
    Factors,
    GrammarCorpus,
    combinations,
    parse,
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


def test_the_words_of_the_examples_are_in_the_language() -> None:
    for sentence in ("a girl runs .", "two girls run .", "a dog jumps .", "two dogs jump .",
                     "a man rides a horse .", "two dogs play in the snow ."):  # fmt: skip
        assert parse(sentence)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_a_share_that_leaves_nothing_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        GrammarCorpus(share)
