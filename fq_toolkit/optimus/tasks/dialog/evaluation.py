"""Measures of dialog responses: BLEU precision, recall and F1 over samples, and distinct n-grams.

Source: arXiv 2004.04092, section 4.3, with the definitions of "DialogWAE", arXiv 1805.12352, extended to
several references.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from fq_toolkit.optimus.data.dialogs import DialogCorpus
from fq_toolkit.optimus.metrics.text_metrics import distinct_ngrams
from fq_toolkit.optimus.tasks.dialog.model import DialogVAE
from fq_toolkit.training.errors import require

EVALUATION_SEED = 0


class SampleBleu(NamedTuple):
    """BLEU of several responses to one context, 0 to 100.

    precision: mean over the samples of the best BLEU with a reference.
    recall: mean over the references of the best BLEU of a sample.
    """

    precision: float
    recall: float


def sample_bleu(samples: Sequence[str], references: Sequence[str]) -> SampleBleu:
    """Compare the samples for a context with its references by the sentence BLEU of sacrebleu.

    Args:
        samples: at least one.
        references: at least one.

    Raises:
        ValueError: no samples or no references.
        MissingExtraError: sacrebleu is not installed.

    Example:
        >>> sample_bleu(["a red cup .", "a red cup ."], ["a red cup .", "it rains ."]).precision
        100.0
    """
    sacrebleu = require("sacrebleu", purpose="BLEU")
    if not samples or not references:
        raise ValueError(f"expected samples and references, got {len(samples)} and {len(references)}")
    metric = sacrebleu.metrics.BLEU(effective_order=True, tokenize="none", force=True)
    # Samples repeat: each pair of different texts is scored once.
    known = {
        (sample, reference): float(metric.sentence_score(sample, [reference]).score)
        for sample in set(samples)
        for reference in set(references)
    }
    precision = sum(max(known[s, r] for r in references) for s in samples) / len(samples)
    recall = sum(max(known[s, r] for s in samples) for r in references) / len(references)
    # sacrebleu's perfect score is 100.00000000000004
    return SampleBleu(min(precision, 100.0), min(recall, 100.0))


def f1(precision: float, recall: float) -> float:
    """Return the harmonic mean ``2 P R / (P + R)``; 0 if both are 0."""
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


class DialogFigures(NamedTuple):
    """One measurement of a dialog model; BLEU from 0 to 100, shares from 0 to 1, means over contexts.

    bleu_precision: mean over the samples for a context.
    bleu_recall: best of the samples for a reference.
    bleu_f1: of these two means.
    intra_dist1, intra_dist2: different words, and pairs of words, within a response.
    inter_dist1, inter_dist2: within all samples for a context together.
    right: share of the samples that are right answers; None unless all right answers are known.
    found: share of a context's right answers that are among its samples; None likewise.
    right_from_mean: share of contexts whose response from the mean is right; None likewise.
    contexts: measured.
    samples: per context.
    """

    bleu_precision: float
    bleu_recall: float
    bleu_f1: float
    intra_dist1: float
    intra_dist2: float
    inter_dist1: float
    inter_dist2: float
    right: float | None
    found: float | None
    right_from_mean: float | None
    contexts: int
    samples: int

    def __str__(self) -> str:
        lines = [
            f"{self.contexts} held-out contexts, {self.samples} responses each: BLEU precision "
            f"{self.bleu_precision:.1f}, recall {self.bleu_recall:.1f}, F1 {self.bleu_f1:.1f}",
            f"distinct n-grams: intra {self.intra_dist1:.3f} (1) {self.intra_dist2:.3f} (2), "
            f"inter {self.inter_dist1:.3f} (1) {self.inter_dist2:.3f} (2)",
        ]
        if self.right is not None and self.found is not None and self.right_from_mean is not None:
            lines.append(
                f"right answers: {100 * self.right:.1f} % of the samples, {100 * self.right_from_mean:.1f} % "
                f"of the responses from the mean; {100 * self.found:.1f} % of all right answers are found"
            )
        return "\n".join(lines)

    def values(self) -> dict[str, float]:
        """Return the figures as columns of ``metrics.csv``."""
        return {name: float(getattr(self, field)) for field, name in _COLUMNS.items()}

    def record(self) -> dict[str, Any]:
        """Return the figures for ``evaluation.json``."""
        return self._asdict()


BLEU_F1 = "BLEU/F1"
"""The figure by which the best checkpoint is kept."""
_COLUMNS = {
    "bleu_precision": "BLEU/precision",
    "bleu_recall": "BLEU/recall",
    "bleu_f1": BLEU_F1,
    "intra_dist1": "distinct/intra 1",
    "intra_dist2": "distinct/intra 2",
    "inter_dist1": "distinct/inter 1",
    "inter_dist2": "distinct/inter 2",
}


class DialogEvaluator:
    """Measures models of one run, always on the same contexts and with the same draws.

    Args:
        corpus: with the pairs kept for measuring.
        rows: contexts at most.
        samples: responses per context; the paper has 10.
    """

    def __init__(self, corpus: DialogCorpus, rows: int, samples: int) -> None:
        grouped = list(corpus.valid.grouped().items())
        # Spread over the corpus: neighbours in a file often belong to one dialog.
        self.references = dict(grouped[:: max(1, len(grouped) // rows)][:rows])
        self.samples, self.known = samples, corpus.answers_are_known
        self.columns = list(_COLUMNS.values())

    def __call__(self, model: DialogVAE) -> DialogFigures:
        """Measure a model; the global random state is not touched."""
        generator = torch.Generator().manual_seed(EVALUATION_SEED)
        answers = model.respond(
            list(self.references),
            samples=self.samples,
            generator=generator,
            max_new_tokens=model.base.max_length,
        )
        return measure_responses(answers, list(self.references.values()), known=self.known)


def measure_responses(
    answers: Sequence[Sequence[str]], references: Sequence[Sequence[str]], *, known: bool
) -> DialogFigures:
    """Measure responses.

    Args:
        answers: for each context as many responses, that of the mean first.
        references: for each context its right ones.
        known: whether these are all right ones.

    Raises:
        ValueError: when there are none, or not one list of references per context.
    """
    if not answers or len(answers) != len(references):
        raise ValueError(f"expected references for each context, got {len(references)} for {len(answers)}")
    scores = [sample_bleu(a, r) for a, r in zip(answers, references, strict=True)]
    precision = sum(s.precision for s in scores) / len(scores)
    recall = sum(s.recall for s in scores) / len(scores)
    one, two = ([distinct_ngrams(a, n) for a in answers] for n in (1, 2))
    count, rows = len(answers), list(zip(answers, references, strict=True))
    right = sum(sum(text in set(r) for text in a) / len(a) for a, r in rows) / count
    found = sum(len(set(a) & set(r)) / len(set(r)) for a, r in rows) / count
    from_mean = sum(a[0] in r for a, r in rows) / count
    return DialogFigures(
        bleu_precision=precision,
        bleu_recall=recall,
        bleu_f1=f1(precision, recall),
        intra_dist1=sum(d.intra for d in one) / count,
        intra_dist2=sum(d.intra for d in two) / count,
        inter_dist1=sum(d.inter for d in one) / count,
        inter_dist2=sum(d.inter for d in two) / count,
        right=right if known else None,
        found=found if known else None,
        right_from_mean=from_mean if known else None,
        contexts=count,
        samples=len(answers[0]),
    )
