"""The trainer of ``train optimus --task dialog``."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fq_toolkit.optimus.data.dialogs import DialogCorpus, Dialogs, load_dialogs
from fq_toolkit.optimus.model.batch import Tokenizers
from fq_toolkit.optimus.tasks.config import FREE_ON_RESUME
from fq_toolkit.optimus.tasks.dialog.evaluation import BLEU_F1, DialogEvaluator
from fq_toolkit.optimus.tasks.dialog.model import DialogBatch, DialogVAE
from fq_toolkit.optimus.tasks.networks import build_vae
from fq_toolkit.optimus.tasks.paired import PairedConfig, TokenTable
from fq_toolkit.optimus.tasks.sentence_task import HeldOut, SentenceTask, held_out_source
from fq_toolkit.training.bounds import NotNegative, Positive
from fq_toolkit.training.seeding import seed_everything
from fq_toolkit.training.session import Trainer
from fq_toolkit.training.storage.best import Selection
from fq_toolkit.training.task import count_weights

TRAINER = "optimus-dialog"


@dataclass(frozen=True)
class DialogConfig(PairedConfig):
    """Everything that decides a dialog run."""

    ratio_zero: float = 0.1
    """cyclical: share of a cycle with beta 0, in which nothing holds the two posteriors together."""
    turns: Positive[int] = 1
    """Of a dialog, how many turns before the response make the context."""
    fusion: NotNegative[float] = 0.5
    """Weight of the response's NLL from a latent between its own and its context's."""
    context_kl: NotNegative[float] = 0.1
    """Weight of the KL from the context's posterior to N(0, I)."""
    samples: Positive[int] = 10
    """Responses per context when measuring; the paper has 10."""


class DialogRows:
    """Pairs as token ids.

    Args:
        pairs: contexts and responses.
        tokenizers: of encoder and decoder.
        max_length: most tokens of a context and of a response.
    """

    def __init__(self, pairs: Dialogs, tokenizers: Tokenizers, *, max_length: int) -> None:
        self.tokenizers, self._pairs = tokenizers, pairs
        self.contexts, self.responses = (
            TokenTable(texts, tokenizers, max_length=max_length) for texts in pairs
        )
        self.kept = np.flatnonzero(self.contexts.fits & self.responses.fits)
        self.too_long = len(pairs.contexts) - len(self.kept)

    def lengths(self) -> Tensor:
        """Return the decoder's tokens of each response."""
        return torch.tensor(self.responses.lengths(self.kept), dtype=torch.int64)

    def batch(self, rows: Sequence[int] | Tensor) -> DialogBatch:
        """Return the padded batch of these rows, on the CPU."""
        chosen = [int(self.kept[int(row)]) for row in rows]
        return DialogBatch(self.contexts.batch(chosen), self.responses.batch(chosen))

    def fingerprint(self) -> str:
        """Return what two data sets of the same rows, and only those, have in common."""
        rows = zip(*self._pairs, strict=True)
        return hashlib.sha256("\n".join("\t".join(pair) for pair in rows).encode()).hexdigest()


class DialogTask(SentenceTask):
    """A model of dialog responses in training.

    Args:
        config: all options.
        corpus: pairs of context and response.
        accelerator: an ``accelerate.Accelerator``.
        measure_on: what the corpus is measured with, where that is not of the run.

    Raises:
        ConfigError: when the pairs do not fill a batch, or all to measure with are too long.
    """

    selection = Selection(BLEU_F1, highest=True)

    def __init__(
        self, config: DialogConfig, corpus: DialogCorpus, accelerator: Any, *, measure_on: str | None = None
    ) -> None:
        source = held_out_source(config, measure_on)
        train, valid = corpus.train, corpus.valid
        seed_everything(config.seed)  # the same weights everywhere
        with accelerator.main_process_first():  # the others then read the cache
            base = build_vae(config, [*train.contexts, *train.responses])
        model = DialogVAE(base, fusion=config.fusion, context_kl=config.context_kl)
        data = DialogRows(train, base.tokenizers, max_length=config.max_length)
        measured = DialogRows(valid, base.tokenizers, max_length=config.max_length)
        super().__init__(
            config,
            model,
            data,
            DialogEvaluator(corpus, config.eval_rows, config.samples),
            held_out=HeldOut(
                source,
                rows=list(zip(*valid, strict=True)),
                usable=len(measured.kept),
                trained=train.contexts,
                measured=list(dict.fromkeys(valid.contexts)),  # its responses are measured together
                noun="contexts",
            ),
            sentence_vae=base,
            skipped=corpus.skipped,
            accelerator=accelerator,
        )

    def describe(self) -> str:
        """Return pairs, contexts and weights."""
        contexts = len(self.evaluator.references)
        return (
            f"{len(self.data.kept):,} pairs, {contexts:,} contexts to measure with; "
            f"{count_weights(self.vae):,} weights"
        )


def build_task(config: DialogConfig, accelerator: Any, *, measure_on: str | None = None) -> DialogTask:
    """Load the data and build the task.

    Args:
        config: all options.
        accelerator: an ``accelerate.Accelerator``.
        measure_on: a file to measure with in place of the run's own pairs.
    """
    corpus = load_dialogs(
        config.data, config.valid, turns=config.turns, limit=config.limit, measure_on=measure_on
    )
    return DialogTask(config, corpus, accelerator, measure_on=measure_on)


def run_name(config: DialogConfig) -> str:
    """Return the first part of a default folder name."""
    return f"{TRAINER}-seed{config.seed}"


DIALOG_TRAINER = Trainer(
    name=TRAINER,
    config_class=DialogConfig,
    build=build_task,
    run_name=run_name,
    artifacts=("model/", "curves.png", "metrics.csv"),
    free_on_resume=FREE_ON_RESUME,
)
