"""A small language in which every sentence has known factors, so that a latent space can be scored.

A sentence says who, how many, what, when, where, and in which mood: ``two happy dogs jump in the snow .``.
Some combinations of factors are held out: no training sentence has them, but each value occurs in many
others. An analogy that ends in one of them can only be right if the factors are separate in the latent space.
"""

import itertools
import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np

# Factor -> value -> words, in the order of `Factors`:
#   subject: the plural; number: the word in front; action: third person singular, plural, past, and what
#   follows the verb; place: the end of the sentence; label: synonyms in front of the subject.
_WORDS: dict[str, Any] = json.loads((files(__package__) / "grammar.json").read_text(encoding="utf-8"))
FACTORS: dict[str, tuple[str, ...]] = {factor: tuple(values) for factor, values in _WORDS.items()}
"""Factor -> its values, in the order of `Factors`."""
HELD_OUT = 0.1
_SPLIT_SEED = 20200409


class Factors(NamedTuple):
    """What a sentence says. ``label`` is its sentiment, for which there may be two synonyms."""

    subject: str
    number: str
    action: str
    tense: str
    place: str
    label: str


def sentences(factors: Factors) -> tuple[str, ...]:
    """Return all sentences that say the same: one for each synonym of the label.

    Example:
        >>> sentences(Factors("dog", "two", "jump", "past", "snow", "positive"))
        ('two happy dogs jumped in the snow .', 'two cheerful dogs jumped in the snow .')
    """
    plural = factors.number == "two"
    noun = _WORDS["subject"][factors.subject] if plural else factors.subject
    third, base, past, rest = _WORDS["action"][factors.action]
    verb = {"present": base if plural else third, "past": past, "future": f"will {base}"}[factors.tense]
    number, place = _WORDS["number"][factors.number], _WORDS["place"][factors.place]
    return tuple(f"{number} {mood}{noun} {verb}{rest}{place} ." for mood in _WORDS["label"][factors.label])


def combinations() -> Iterator[Factors]:
    """Return all combinations of factors, always in the same order."""
    return (Factors(*values) for values in itertools.product(*FACTORS.values()))


@cache
def _meanings() -> dict[str, Factors]:
    """Return sentence -> factors, for the whole language."""
    return {sentence: factors for factors in combinations() for sentence in sentences(factors)}


def parse(sentence: str) -> Factors | None:
    """Return the factors of a sentence; None if it is not one of this language.

    Example:
        >>> parse("a girl runs .").number
        'one'
        >>> parse("two girl runs .") is None
        True
    """
    return _meanings().get(" ".join(sentence.split()))


class GrammarCorpus:
    """All sentences of the language, in two parts that share no combination of factors.

    The split is the same for everybody: figures can be compared across runs and seeds.

    Args:
        held_out: share of the combinations that no training sentence has.

    Example:
        >>> corpus = GrammarCorpus()
        >>> len(corpus.train), len(corpus.held_out)
        (7568, 832)
        >>> corpus.factors("a girl runs .").subject
        'girl'
    """

    def __init__(self, held_out: float = HELD_OUT) -> None:
        if not 0 < held_out < 1:
            raise ValueError(f"held_out is {held_out}; expected a share between 0 and 1")
        every = list(combinations())
        order = np.random.default_rng(_SPLIT_SEED).permutation(len(every))
        hidden = set(order[: round(held_out * len(every))].tolist())
        self.train_factors = [factors for i, factors in enumerate(every) if i not in hidden]
        self.held_out_factors = [factors for i, factors in enumerate(every) if i in hidden]
        self.train = [text for factors in self.train_factors for text in sentences(factors)]
        self.held_out = [text for factors in self.held_out_factors for text in sentences(factors)]

    @staticmethod
    def factors(sentence: str) -> Factors | None:
        """Return the factors of a sentence; see `parse`."""
        return parse(sentence)
