"""Examples at the end of a run: interpolations and analogies."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fq_toolkit.optimus.data.corpus import Corpus
from fq_toolkit.optimus.data.grammar import parse
from fq_toolkit.optimus.metrics.analogies import draw_analogies
from fq_toolkit.optimus.metrics.language_metrics import readable
from fq_toolkit.optimus.model.sentence_vae import SentenceVAE
from fq_toolkit.optimus.tasks.vae.evaluation import Evaluation, ask
from fq_toolkit.training.atomic import write_atomic
from fq_toolkit.training.storage.run_folder import RunFolder

COUNT, STEPS = 10, 5
_SEED = 7
_MAX_NEW_TOKENS = 40
_POOL = 500


class ShownAnalogy(NamedTuple):
    """An analogy a : b = c : answer; ``right`` is None if the right answer is not known."""

    a: str
    b: str
    c: str
    answer: str
    right: bool | None

    def __str__(self) -> str:
        verdict = {True: "  (right)", False: "  (wrong)", None: ""}[self.right]
        return f"{self.a} -> {self.b} | {self.c} -> {self.answer}{verdict}"


@dataclass(frozen=True)
class Showcase:
    """The figures of a run and examples; its ``str`` is what the command line prints.

    Args:
        figures: the last measurement.
        interpolations: each a list of sentences, from the reconstruction of one to that of another.
        analogies: with answers.
    """

    figures: Evaluation
    interpolations: list[list[str]]
    analogies: list[ShownAnalogy]

    def examples(self) -> str:
        """Return interpolations and analogies as text."""
        lines = [f"{len(self.interpolations)} interpolations, {STEPS} steps each:"]
        for path in self.interpolations:
            lines += ["", *(f"  {text}" for text in path)]
        lines += ["", f"{len(self.analogies)} analogies:", ""]
        return "\n".join([*lines, *(f"  {analogy}" for analogy in self.analogies)])

    def __str__(self) -> str:
        return f"{self.examples()}\n\n{self.figures}"

    def write(self, run: RunFolder) -> None:
        """Write ``examples.txt``."""
        write_atomic(run.path / "examples.txt", (self.examples() + "\n").encode())


def make_showcase(vae: SentenceVAE, corpus: Corpus, figures: Evaluation) -> Showcase:
    """Make ten interpolations and ten analogies with a model, always from the same sentences.

    Analogies on the grammar have known answers. Elsewhere their sentences are random held-out ones, and the
    right answers are not known.
    """
    random = np.random.default_rng(_SEED)
    pool = readable(vae, corpus.valid)[1][:_POOL]
    # All in one draw, even if the grammar replaces some: the interpolations are the same in both cases.
    drawn = [pool[i] for i in random.integers(len(pool), size=5 * COUNT)]
    ends_a, ends_b, a, b, c = (drawn[i * COUNT : (i + 1) * COUNT] for i in range(5))
    paths = [
        vae.interpolate(*ends, STEPS, max_new_tokens=_MAX_NEW_TOKENS)
        for ends in zip(ends_a, ends_b, strict=True)
    ]
    questions = [] if corpus.grammar is None else draw_analogies(corpus.grammar, COUNT, seed=_SEED)
    if questions:
        a, b, c = ask(questions)
    answers = vae.analogy(a, b, c, max_new_tokens=_MAX_NEW_TOKENS)
    right: list[bool | None] = [None] * COUNT
    if questions:
        right = [parse(answer) == q.expected for answer, q in zip(answers, questions, strict=True)]
    shown = [ShownAnalogy(*row) for row in zip(a, b, c, answers, right, strict=True)]
    return Showcase(figures, paths, shown)
