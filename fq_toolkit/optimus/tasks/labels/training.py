"""The trainer of ``train optimus --task label-conditional``."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fq_toolkit.optimus.data.corpus import GRAMMAR
from fq_toolkit.optimus.data.labels import Labelled, LabelledCorpus, load_labelled
from fq_toolkit.optimus.model.batch import Tokenizers
from fq_toolkit.optimus.tasks.config import FREE_ON_RESUME
from fq_toolkit.optimus.tasks.labels.evaluation import RIGHT_LABELS, LabelEvaluator
from fq_toolkit.optimus.tasks.labels.model import LabelledBatch, LabelVAE
from fq_toolkit.optimus.tasks.networks import build_vae
from fq_toolkit.optimus.tasks.paired import EMBEDDED, PairedConfig, TokenTable
from fq_toolkit.optimus.tasks.sentence_task import HeldOut, SentenceTask, held_out_source
from fq_toolkit.training.bounds import NotNegative
from fq_toolkit.training.seeding import seed_everything
from fq_toolkit.training.session import Trainer
from fq_toolkit.training.storage.best import Selection
from fq_toolkit.training.task import count_weights

TRAINER = "optimus-label-conditional"


@dataclass(frozen=True)
class LabelConfig(PairedConfig):
    """Everything that decides a label-conditional run."""

    text_key: str = "text"
    """Where the text is in a JSON line."""
    label_key: str = "label"
    """Where the label is in a JSON line."""
    free_bits: float = 0.5
    """Nats of KL per dimension that cost nothing; the paper's lambda."""
    adversary: NotNegative[float] = 1.0
    """Weight of leaving a classifier undecided that reads the label from the latent; 0 leaves it out."""


class LabelledRows:
    """Labelled sentences as token ids.

    Args:
        rows: the sentences.
        tokenizers: of encoder and decoder.
        max_length: most tokens of a sentence.
    """

    def __init__(self, rows: Labelled, tokenizers: Tokenizers, *, max_length: int) -> None:
        self.table, self.tokenizers = TokenTable(rows.texts, tokenizers, max_length=max_length), tokenizers
        self.kept = np.flatnonzero(self.table.fits)
        self.labels = torch.from_numpy(rows.labels)
        self.too_long = len(rows.texts) - len(self.kept)
        self._texts = rows.texts

    def lengths(self) -> Tensor:
        """Return the decoder's tokens of each sentence."""
        return torch.tensor(self.table.lengths(self.kept), dtype=torch.int64)

    def batch(self, rows: Sequence[int] | Tensor) -> LabelledBatch:
        """Return the padded batch of these rows, on the CPU."""
        chosen = [int(self.kept[int(row)]) for row in rows]
        return LabelledBatch(self.table.batch(chosen), self.labels[chosen])

    def fingerprint(self) -> str:
        """Return what two data sets of the same rows, and only those, have in common."""
        rows = zip(self.labels.tolist(), self._texts, strict=True)
        return hashlib.sha256("\n".join(f"{label}\t{text}" for label, text in rows).encode()).hexdigest()


class LabelTask(SentenceTask):
    """A label-conditional VAE in training.

    Args:
        config: all options.
        corpus: labelled sentences.
        accelerator: an ``accelerate.Accelerator``.
        measure_on: what the corpus is measured with, where that is not of the run.

    Raises:
        ConfigError: when the sentences do not fill a batch, or all to measure with are too long.
    """

    selection = Selection(RIGHT_LABELS, highest=True)

    def __init__(
        self, config: LabelConfig, corpus: LabelledCorpus, accelerator: Any, *, measure_on: str | None = None
    ) -> None:
        source = held_out_source(config, measure_on)
        valid, names = corpus.valid, corpus.names
        seed_everything(config.seed)  # the same weights everywhere
        with accelerator.main_process_first():  # the others then read the cache
            base = build_vae(config, corpus.train.texts)
        model = LabelVAE(base, len(names), adversary=config.adversary)
        data = LabelledRows(corpus.train, base.tokenizers, max_length=config.max_length)
        measured = LabelledRows(valid, base.tokenizers, max_length=config.max_length)
        rows = [(names[label], text) for label, text in zip(valid.labels, valid.texts, strict=True)]
        super().__init__(
            config,
            model,
            data,
            LabelEvaluator(corpus, config.eval_rows),
            held_out=HeldOut(source, rows, len(measured.kept), corpus.train.texts, valid.texts),
            sentence_vae=base,
            skipped=corpus.skipped,
            accelerator=accelerator,
        )

    def describe(self) -> str:
        """Return sentences, labels and weights."""
        names = ", ".join(self.evaluator.corpus.names)
        return f"{len(self.data.kept):,} sentences, labels {names}; {count_weights(self.vae):,} weights"


def build_task(
    config: LabelConfig,
    accelerator: Any,
    *,
    measure_on: str | None = None,
    text_key: str | None = None,
    label_key: str | None = None,
) -> LabelTask:
    """Load the data and build the task.

    Args:
        config: all options.
        accelerator: an ``accelerate.Accelerator``.
        measure_on: a file to measure with in place of the run's own sentences.
        text_key: where the text is in its JSON lines; as in the run by default, like the next.
        label_key: where the label is.
    """
    corpus = load_labelled(
        GRAMMAR if config.data == EMBEDDED else config.data,
        config.valid,
        text_key=config.text_key,
        label_key=config.label_key,
        limit=config.limit,
        measure_on=measure_on,
        measure_keys=(text_key, label_key),
    )
    return LabelTask(config, corpus, accelerator, measure_on=measure_on)


def run_name(config: LabelConfig) -> str:
    """Return the first part of a default folder name."""
    return f"{TRAINER}-seed{config.seed}"


LABEL_TRAINER = Trainer(
    name=TRAINER,
    config_class=LabelConfig,
    build=build_task,
    run_name=run_name,
    artifacts=("model/", "curves.png", "metrics.csv"),
    free_on_resume=FREE_ON_RESUME,
)
