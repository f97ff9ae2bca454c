"""Measures of label-conditional generation: right labels, quality and variety of the texts."""

from typing import Any, NamedTuple

import numpy as np
import torch

from fq_toolkit.optimus.data.grammar import parse
from fq_toolkit.optimus.data.labels import Labelled, LabelledCorpus
from fq_toolkit.optimus.metrics.text_metrics import corpus_bleu, self_bleu
from fq_toolkit.optimus.tasks.labels.model import LabelVAE
from fq_toolkit.training.errors import require

EVALUATION_SEED = 0
_TRAIN_ROWS, _REFERENCES, _COMPARED = 20_000, 100, 100


class LabelFigures(NamedTuple):
    """One measurement of a label-conditional model; shares from 0 to 1, BLEU from 0 to 100.

    accuracy: share of sentences from the prior to which the judge gives the label that was asked for.
    judge_accuracy: accuracy of the judge itself on real sentences.
    bleu: BLEU of sentences from the prior against real sentences of the label.
    self_bleu: self-BLEU of sentences from the prior, mean over labels; lower is more varied.
    rewrite_accuracy: as ``accuracy``, of sentences that were rewritten with another label.
    rewrite_bleu: BLEU of these against their originals: how much is kept.
    reconstruction_bleu: BLEU of sentences rewritten with their own label, against their originals.
    known_accuracy: as ``accuracy``, judged by the grammar: sentences of the language with the label; None
        without the grammar.
    known_rewrites: share of rewritten sentences in which the label changed and nothing else; None without the
        grammar.
    rows: sentences behind each figure.
    """

    accuracy: float
    judge_accuracy: float
    bleu: float
    self_bleu: float
    rewrite_accuracy: float
    rewrite_bleu: float
    reconstruction_bleu: float
    known_accuracy: float | None
    known_rewrites: float | None
    rows: int

    def __str__(self) -> str:
        lines = [
            f"{self.rows} sentences from the prior: {100 * self.accuracy:.1f} % have the label asked for "
            f"(judge right on {100 * self.judge_accuracy:.1f} % of real ones), BLEU {self.bleu:.1f} against "
            f"real ones of the label, self-BLEU {self.self_bleu:.1f}",
            f"{self.rows} rewritten with another label: {100 * self.rewrite_accuracy:.1f} % have it, BLEU "
            f"{self.rewrite_bleu:.1f} with what they were; with their own label BLEU "
            f"{self.reconstruction_bleu:.1f}",
        ]
        if self.known_accuracy is not None and self.known_rewrites is not None:
            lines.append(
                f"by the grammar: {100 * self.known_accuracy:.1f} % of those from the prior are sentences of "
                f"the language with the label; {100 * self.known_rewrites:.1f} % of the rewritten ones "
                "changed it and nothing else"
            )
        return "\n".join(lines)

    def values(self) -> dict[str, float]:
        """Return the figures as columns of ``metrics.csv``."""
        return {name: float(getattr(self, field)) for field, name in _COLUMNS.items()}

    def record(self) -> dict[str, Any]:
        """Return the figures for ``evaluation.json``."""
        return self._asdict()


RIGHT_LABELS = "label/from the prior"
"""The figure by which the best checkpoint is kept."""
_COLUMNS = {
    "accuracy": RIGHT_LABELS,
    "rewrite_accuracy": "label/rewritten",
    "bleu": "BLEU/from the prior",
    "self_bleu": "BLEU/self",
    "rewrite_bleu": "BLEU/rewritten",
    "reconstruction_bleu": "BLEU/reconstruction",
}


class Judge:
    """A classifier of sentences by their words and pairs of words, trained on real sentences.

    Args:
        train: to learn from, the first 20,000.
        test: to measure the judge with.
    """

    def __init__(self, train: Labelled, test: Labelled) -> None:
        text = require("sklearn.feature_extraction.text", purpose="judging labels")
        linear = require("sklearn.linear_model", purpose="judging labels")
        pipeline = require("sklearn.pipeline", purpose="judging labels")
        self.model = pipeline.make_pipeline(
            text.TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\S+", sublinear_tf=True),
            linear.LogisticRegression(C=10.0, max_iter=1000),
        )
        self.model.fit(train.texts[:_TRAIN_ROWS], train.labels[:_TRAIN_ROWS])
        self.accuracy = self.share(test.texts, test.labels)

    def share(self, texts: list[str], labels: np.ndarray) -> float:
        """Return the share of texts that get these labels."""
        return float((self.model.predict(texts) == labels).mean())


class LabelEvaluator:
    """Measures models of one run, always with the same latents and sentences.

    Args:
        corpus: labelled sentences.
        rows: sentences behind each figure.
    """

    def __init__(self, corpus: LabelledCorpus, rows: int) -> None:
        self.corpus = corpus
        self.judge: Judge | None = None
        self.sources = corpus.valid.take(range(min(rows, len(corpus.valid.texts))))
        self.columns = list(_COLUMNS.values())

    def __call__(self, model: LabelVAE) -> LabelFigures:
        """Measure a model; the global random state is not touched."""
        # On first use, as it takes seconds and a run without evaluations needs none.
        if self.judge is None:
            self.judge = Judge(self.corpus.train, self.corpus.valid.take(self._every()))
        classes, sources = len(self.corpus.names), self.sources
        count = len(sources.texts)
        asked = np.arange(count) % classes  # every label equally often
        generator = torch.Generator().manual_seed(EVALUATION_SEED)
        z = torch.randn(count, model.base.latent_size, generator=generator).to(model.base.device)
        options: dict[str, Any] = {"max_new_tokens": model.base.max_length}
        written = model.write(z, torch.from_numpy(asked), **options)
        # Another label for each sentence: all others in turn, never its own.
        other = (sources.labels + 1 + np.arange(count) % (classes - 1)) % classes
        rewritten = model.rewrite(sources.texts, torch.from_numpy(other), **options)
        same = model.rewrite(sources.texts, torch.from_numpy(sources.labels), **options)
        references = [self.corpus.valid.of(label)[:_REFERENCES] for label in range(classes)]
        known_accuracy = known_rewrites = None
        if self.corpus.is_grammar:
            names = self.corpus.names
            hits = [_label(text) == names[label] for text, label in zip(written, asked, strict=True)]
            known_accuracy = float(np.mean(hits))
            known_rewrites = float(
                np.mean(
                    [
                        _only_label_changed(a, b, names[label])
                        for a, b, label in zip(sources.texts, rewritten, other, strict=True)
                    ]
                )
            )
        return LabelFigures(
            accuracy=self.judge.share(written, asked),
            judge_accuracy=self.judge.accuracy,
            # A label without held-out sentences has an empty reference, which BLEU scores as 0.
            bleu=corpus_bleu(written, [references[label] or [""] for label in asked]),
            self_bleu=float(np.mean([_alike(written, asked == label) for label in range(classes)])),
            rewrite_accuracy=self.judge.share(rewritten, other),
            rewrite_bleu=corpus_bleu(rewritten, [[text] for text in sources.texts]),
            reconstruction_bleu=corpus_bleu(same, [[text] for text in sources.texts]),
            known_accuracy=known_accuracy,
            known_rewrites=known_rewrites,
            rows=count,
        )

    def _every(self) -> range:
        """Return at most 5,000 rows to measure the judge with."""
        return range(min(5000, len(self.corpus.valid.texts)))


def _alike(texts: list[str], chosen: np.ndarray) -> float:
    rows = [texts[i] for i in np.flatnonzero(chosen)][:_COMPARED]
    return self_bleu(rows) if len(rows) > 1 else 0.0


def _label(text: str) -> str | None:
    factors = parse(text)
    return None if factors is None else factors.label


def _only_label_changed(before: str, after: str, label: str) -> bool:
    had, has = parse(before), parse(after)
    return had is not None and has == had._replace(label=label)
