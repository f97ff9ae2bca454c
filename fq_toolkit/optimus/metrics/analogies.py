"""Analogies on the embedded grammar, whose right answers are known.

Source: arXiv 2004.04092, section 4.2 (latent vector arithmetic). The paper shows examples. Here answers are
scored, on combinations of factors that no training sentence has.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fq_toolkit.optimus.data.grammar import FACTORS, Factors, GrammarCorpus, parse, sentences


class Analogy(NamedTuple):
    """The question a : b = c : ?. One factor changes from a to b; ``expected`` is c with the same change."""

    a: str
    b: str
    c: str
    factor: str
    expected: Factors


class AnalogyScore(NamedTuple):
    """Shares of right answers, from 0 to 1.

    accuracy: every factor is as expected.
    changed: the factor that had to change is as expected.
    kept: all other factors are those of c.
    parsed: the answer is a sentence of the language.
    by_factor: factor that had to change -> accuracy.
    """

    accuracy: float
    changed: float
    kept: float
    parsed: float
    by_factor: dict[str, float]


def draw_analogies(corpus: GrammarCorpus, count: int, *, seed: int = 0) -> list[Analogy]:
    """Draw analogies whose three sentences are training sentences and whose answer is held out.

    Args:
        corpus: the language.
        count: how many; the factors take turns.
        seed: of the choice.
    """
    random = np.random.default_rng(seed)
    trained, held_out = set(corpus.train_factors), corpus.held_out_factors
    analogies: list[Analogy] = []
    while len(analogies) < count:
        # Each draw depends on all before: the order of these lines decides which analogies there are.
        factor = list(FACTORS)[len(analogies) % len(FACTORS)]
        expected = held_out[random.integers(len(held_out))]
        old = random.choice([value for value in FACTORS[factor] if value != getattr(expected, factor)])
        other = corpus.train_factors[random.integers(len(corpus.train_factors))]
        a = other._replace(**{factor: str(old)})
        b = other._replace(**{factor: getattr(expected, factor)})
        c = expected._replace(**{factor: str(old)})
        if {a, b, c} <= trained:
            first, second = int(random.integers(2)), int(random.integers(2))
            # a and b use the same synonym: they must differ in nothing but the factor.
            said = [_say(a, first), _say(b, first), _say(c, second)]
            analogies.append(Analogy(said[0], said[1], said[2], factor, expected))
    return analogies


def _say(factors: Factors, way: int) -> str:
    ways = sentences(factors)
    return ways[way % len(ways)]


def score_analogies(analogies: Sequence[Analogy], answers: Sequence[str]) -> AnalogyScore:
    """Compare answers with what was expected, factor by factor.

    Args:
        analogies: the questions.
        answers: one sentence each.

    Raises:
        ValueError: when there are none, or not one answer each.
    """
    if not analogies or len(analogies) != len(answers):
        raise ValueError(
            f"{len(analogies)} analogies and {len(answers)} answers; expected as many, at least 1"
        )
    right: dict[str, list[bool]] = {}
    changed, kept, parsed = 0, 0, 0
    for question, answer in zip(analogies, answers, strict=True):
        said, expected, factor = parse(answer), question.expected, question.factor
        right.setdefault(factor, []).append(said == expected)
        if said is not None:
            parsed += 1
            changed += getattr(said, factor) == getattr(expected, factor)
            kept += said._replace(**{factor: getattr(expected, factor)}) == expected
    count = len(analogies)
    return AnalogyScore(
        accuracy=sum(map(sum, right.values())) / count,
        changed=changed / count,
        kept=kept / count,
        parsed=parsed / count,
        by_factor={factor: sum(hits) / len(hits) for factor, hits in right.items()},
    )
