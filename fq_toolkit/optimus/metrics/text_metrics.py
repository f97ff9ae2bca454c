"""Measures of the quality and variety of generated sentences: BLEU, self-BLEU, distinct n-grams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fq_toolkit.layers.checks import at_least_one
from fq_toolkit.optimus.model.batch import as_list
from fq_toolkit.training.errors import require


class Distinct(NamedTuple):
    """Share of n-grams that are distinct, from 0 to 1.

    Attributes:
        intra: within each text, mean over the texts; a text shorter than n words counts as 0.
        inter: over all texts together.
    """

    intra: float
    inter: float


def distinct_ngrams(texts: Sequence[str], n: int) -> Distinct:
    """Compute dist-n, the number of distinct n-grams of words divided by the number of all n-grams.

    Args:
        texts: sentences, words between spaces.
        n: length of an n-gram.

    Returns:
        The shares within texts and over all texts.

    Raises:
        ValueError: no text.

    Example:
        >>> distinct_ngrams(["a a b", "a c"], 1)
        Distinct(intra=0.8333333333333333, inter=0.6)
    """
    at_least_one("n", n)
    texts = as_list(texts)
    if not texts:
        raise ValueError("expected at least one text, got none")
    grams = [ngrams(text.split(), n) for text in texts]
    everything = [gram for row in grams for gram in row]
    intra = sum(len(set(row)) / len(row) for row in grams if row) / len(texts)
    return Distinct(intra, len(set(everything)) / len(everything) if everything else 0.0)


def corpus_bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Compute BLEU-4 of a corpus, 0 to 100, by sacrebleu with its own tokenizer.

    Args:
        hypotheses: N sentences.
        references: one or more sentences for each hypothesis.

    Raises:
        ValueError: not one list of references per hypothesis.
        MissingExtraError: sacrebleu is not installed.
    """
    sacrebleu = require("sacrebleu", purpose="BLEU")
    hypotheses, references = as_list(hypotheses), [as_list(row) for row in references]
    if len(hypotheses) != len(references) or not hypotheses:
        raise ValueError(
            f"expected references for each hypothesis, got {len(references)} for {len(hypotheses)}"
        )
    most = max(len(row) for row in references)
    if not most or any(not row for row in references):
        raise ValueError("each hypothesis needs at least one reference")
    # sacrebleu takes the k-th references of all hypotheses together, with None where there is none.
    streams = [[row[k] if k < len(row) else None for row in references] for k in range(most)]
    # force only hides the warning that a text looks tokenized.
    score = sacrebleu.metrics.BLEU(force=True).corpus_score(hypotheses, streams).score
    return min(float(score), 100.0)  # sacrebleu's perfect score is 100.00000000000004


def self_bleu(texts: Sequence[str], *, max_ngram: int = 4) -> float:
    """Compute self-BLEU, 0 to 100: the mean BLEU of each text against all others. Lower is more varied.

    The time grows with the square of the number of texts; a few hundred are enough.

    Args:
        texts: at least two.
        max_ngram: length of the longest n-grams that count.

    Raises:
        ValueError: fewer than two texts.
        MissingExtraError: sacrebleu is not installed.
    """
    sacrebleu = require("sacrebleu", purpose="self-BLEU")
    rows = as_list(texts)
    if len(rows) < 2:
        raise ValueError(f"self-BLEU compares at least two texts, got {len(rows)}")
    metric = sacrebleu.metrics.BLEU(max_ngram_order=max_ngram, effective_order=True)
    scores = [metric.sentence_score(rows[i], rows[:i] + rows[i + 1 :]).score for i in range(len(rows))]
    return min(sum(scores) / len(scores), 100.0)


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return the n-grams of a text, in order; none if it is shorter."""
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
