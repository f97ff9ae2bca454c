"""BLEU, self-BLEU and distinct n-grams against counts by hand."""

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit.optimus.metrics.text_metrics import corpus_bleu, distinct_ngrams, ngrams, self_bleu

pytest.importorskip("sacrebleu", reason="sacrebleu is not installed")
TEXT = st.lists(st.sampled_from("a b c d".split()), min_size=1, max_size=8).map(" ".join)


def bleu_by_hand(hypotheses: list[str], references: list[list[str]]) -> float:
    """Corpus BLEU-4 without smoothing: brevity by the closest reference, clipped counts."""
    matches, totals, length, closest = [0] * 4, [0] * 4, 0, 0
    for hypothesis, others in zip(hypotheses, references, strict=True):
        words = hypothesis.split()
        length += len(words)
        lengths = [len(other.split()) for other in others]
        closest += min(lengths, key=lambda n: (abs(n - len(words)), n))
        for n in range(1, 5):
            counts = Counter(ngrams(words, n))
            limits: Counter[tuple[str, ...]] = Counter()
            for other in others:
                limits |= Counter(ngrams(other.split(), n))
            matches[n - 1] += sum((counts & limits).values())
            totals[n - 1] += sum(counts.values())
    precision = sum(math.log(m / t) for m, t in zip(matches, totals, strict=True)) / 4
    return 100 * math.exp(precision + min(0.0, 1 - closest / length))


def test_bleu_is_the_textbook_one() -> None:
    hypotheses = ["a man rides a brown horse in the snow", "two dogs play in the park today"]
    references = [
        ["a man rides a horse in the snow", "a man rides a brown horse in snow and ice"],
        ["two dogs play in the big park"],
    ]
    assert math.isclose(
        corpus_bleu(hypotheses, references), bleu_by_hand(hypotheses, references), rel_tol=1e-9
    )
    swapped = [references[0][::-1], references[1]]
    assert math.isclose(corpus_bleu(hypotheses, swapped), corpus_bleu(hypotheses, references), rel_tol=1e-12)


def test_bleu_of_the_same_is_100_and_of_nothing_in_common_is_0() -> None:
    texts = ["a man rides a horse .", "two dogs play in the snow ."]
    assert math.isclose(corpus_bleu(texts, [[text] for text in texts]), 100)
    assert corpus_bleu(["x y z u v"], [["a b c d e"]]) < 1e-6


def test_bleu_refuses_what_does_not_pair_up() -> None:
    with pytest.raises(ValueError, match="references for each hypothesis, got 1 for 2"):
        corpus_bleu(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="at least one reference"):
        corpus_bleu(["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="got 0 for 0"):
        corpus_bleu([], [])


def test_self_bleu_tells_variety() -> None:
    same = ["a man rides a horse"] * 3
    apart = ["a man rides some horse", "two dogs play outside today", "nobody knows where birds sleep"]
    assert math.isclose(self_bleu(same), 100)
    assert self_bleu(apart) < 5 < self_bleu([*same[:2], *apart])
    with pytest.raises(ValueError, match="at least two texts, got 1"):
        self_bleu(["a"])


def test_self_bleu_is_the_mean_over_the_texts() -> None:
    texts = ["a b c d e f", "a b c d x y", "a b c d e y"]
    each = [bleu_by_hand([texts[i]], [texts[:i] + texts[i + 1 :]]) for i in range(3)]
    assert math.isclose(self_bleu(texts), sum(each) / 3, rel_tol=1e-9)


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(TEXT, min_size=1, max_size=5), n=st.integers(1, 3))
def test_distinct_ngrams_by_counting(texts: list[str], n: int) -> None:
    shares, seen = [], []
    for text in texts:
        words = text.split()
        grams = [" ".join(words[i : i + n]) for i in range(len(words)) if i + n <= len(words)]
        shares.append(len(set(grams)) / len(grams) if grams else 0.0)
        seen += grams
    found = distinct_ngrams(texts, n)
    assert math.isclose(found.intra, sum(shares) / len(texts))
    assert math.isclose(found.inter, len(set(seen)) / len(seen) if seen else 0.0)
    assert distinct_ngrams(texts * 2, n).inter <= found.inter


def test_distinct_ngrams_refuse_nothing_at_all() -> None:
    with pytest.raises(ValueError, match="at least one text"):
        distinct_ngrams([], 1)
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        distinct_ngrams(["a"], 0)


@pytest.mark.parametrize("words", [1, 4, 9])
def test_a_perfect_score_is_100_and_not_more(words: int) -> None:
    text = " ".join("abcdefghi"[:words])
    assert corpus_bleu([text] * 3, [[text]] * 3) <= 100
    assert self_bleu([text] * 3) <= 100
    assert self_bleu([text] * 3) == pytest.approx(100)
