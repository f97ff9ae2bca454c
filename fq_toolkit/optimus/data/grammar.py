"""A small language whose every sentence has known factors, so that what a latent space does can be scored.

A sentence says who, how many, what, when, where, and in which mood: ``two happy dogs jump in the snow .``.
Some combinations of factors are held out: no training sentence has them, though each value is seen in many
others. An analogy that ends in one of them can only be right if the factors are separate in the latent space.
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

SUBJECTS = {
    "girl": "girls", "boy": "boys", "man": "men", "kid": "kids",
    "dog": "dogs", "cat": "cats", "bird": "birds", "clown": "clowns",
}  # fmt: skip
NUMBERS = {"one": "a", "two": "two"}
# action -> third person singular, plural, past, what follows the verb
ACTIONS = {
    "run": ("runs", "run", "ran", ""),
    "jump": ("jumps", "jump", "jumped", ""),
    "play": ("plays", "play", "played", ""),
    "walk": ("walks", "walk", "walked", ""),
    "shout": ("shouts", "shout", "shouted", ""),
    "wait": ("waits", "wait", "waited", ""),
    "ride": ("rides", "ride", "rode", " a horse"),
}
TENSES = ("present", "past", "future")
PLACES = {
    "nowhere": "", "snow": " in the snow", "park": " at the park", "beach": " on the beach",
    "house": " near the house",
}  # fmt: skip
LABELS = {"neutral": ("",), "positive": ("happy ", "cheerful "), "negative": ("sad ", "lonely ")}
HELD_OUT = 0.1
_SPLIT_SEED = 20200409


class Factors(NamedTuple):
    """What a sentence says. ``label`` is its sentiment; two words say the same one."""

    subject: str
    number: str
    action: str
    tense: str
    place: str
    label: str


FACTORS: dict[str, tuple[str, ...]] = {
    "subject": tuple(SUBJECTS),
    "number": tuple(NUMBERS),
    "action": tuple(ACTIONS),
    "tense": TENSES,
    "place": tuple(PLACES),
    "label": tuple(LABELS),
}
"""Factor -> its values, in the order of :class:`Factors`."""


def sentences(factors: Factors) -> tuple[str, ...]:
    """Return every way to say it.

    Example:
        >>> sentences(Factors("dog", "two", "jump", "past", "snow", "positive"))
        ('two happy dogs jumped in the snow .', 'two cheerful dogs jumped in the snow .')
    """
    plural = factors.number == "two"
    noun = SUBJECTS[factors.subject] if plural else factors.subject
    third, base, past, rest = ACTIONS[factors.action]
    verb = {"present": base if plural else third, "past": past, "future": f"will {base}"}[factors.tense]
    number, place = NUMBERS[factors.number], PLACES[factors.place]
    return tuple(f"{number} {mood}{noun} {verb}{rest}{place} ." for mood in LABELS[factors.label])


def _say(factors: Factors, way: int) -> str:
    ways = sentences(factors)
    return ways[way % len(ways)]


def combinations() -> Iterator[Factors]:
    """Return all combinations of factors, always in the same order."""
    return (Factors(*values) for values in itertools.product(*FACTORS.values()))


@cache
def _meanings() -> dict[str, Factors]:
    """Sentence -> factors, for the whole language."""
    return {sentence: factors for factors in combinations() for sentence in sentences(factors)}


def parse(sentence: str) -> Factors | None:
    """Return the factors of a sentence, or None when it is not one of this language.

    Example:
        >>> parse("a girl runs .").number
        'one'
        >>> parse("two girl runs .") is None
        True
    """
    return _meanings().get(" ".join(sentence.split()))


class Analogy(NamedTuple):
    """a : b = c : ?. From a to b one factor changes; the same change of c gives ``expected``, held out."""

    a: str
    b: str
    c: str
    factor: str
    expected: Factors


class AnalogyScore(NamedTuple):
    """How often answers were right, each from 0 to 1.

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
        """Return the factors of a sentence; see :func:`parse`."""
        return parse(sentence)

    def analogies(self, count: int, *, seed: int = 0) -> list[Analogy]:
        """Draw analogies whose three sentences are training sentences and whose answer is held out.

        Args:
            count: how many; the factors take turns.
            seed: of the choice.
        """
        random = np.random.default_rng(seed)
        trained = set(self.train_factors)
        found: list[Analogy] = []
        while len(found) < count:
            factor = list(FACTORS)[len(found) % len(FACTORS)]
            expected = self.held_out_factors[random.integers(len(self.held_out_factors))]
            old = random.choice([v for v in FACTORS[factor] if v != getattr(expected, factor)])
            other = self.train_factors[random.integers(len(self.train_factors))]
            a = other._replace(**{factor: str(old)})
            b = other._replace(**{factor: getattr(expected, factor)})
            c = expected._replace(**{factor: str(old)})
            if {a, b, c} <= trained:
                first, second = int(random.integers(2)), int(random.integers(2))
                # a and b are worded alike: they differ in the factor alone.
                said = [_say(a, first), _say(b, first), _say(c, second)]
                found.append(Analogy(said[0], said[1], said[2], factor, expected))
        return found


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
