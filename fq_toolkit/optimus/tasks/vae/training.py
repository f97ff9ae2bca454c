"""The trainer of ``train optimus``: the sentence VAE itself, on sentences and nothing else."""

from typing import Any

from fq_toolkit.optimus.data.corpus import Corpus, load_corpus
from fq_toolkit.optimus.data.tokenized import tokenize_corpus
from fq_toolkit.optimus.tasks.config import FREE_ON_RESUME
from fq_toolkit.optimus.tasks.networks import build_vae, describe_tokenizer
from fq_toolkit.optimus.tasks.sentence_task import HeldOut, SentenceTask, held_out_source
from fq_toolkit.optimus.tasks.vae.config import TRAINER, OptimusConfig
from fq_toolkit.optimus.tasks.vae.evaluation import NEGATIVE_ELBO, Evaluation, Evaluator
from fq_toolkit.optimus.tasks.vae.showcase import make_showcase
from fq_toolkit.training import session
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.seeding import seed_everything
from fq_toolkit.training.session import Trainer, TrainResult
from fq_toolkit.training.storage.best import Selection
from fq_toolkit.training.storage.run_folder import RunFolder
from fq_toolkit.training.task import LoopResult, count_weights


class VAETask(SentenceTask):
    """A sentence VAE in training.

    Args:
        config: all options.
        corpus: the sentences.
        accelerator: an ``accelerate.Accelerator``.
        measure_on: what the corpus is measured with, where that is not of the run.

    Raises:
        ConfigError: when the sentences do not fill a batch, or those to measure with are too few or too long.
    """

    selection = Selection(NEGATIVE_ELBO, highest=False)

    def __init__(
        self, config: OptimusConfig, corpus: Corpus, accelerator: Any, *, measure_on: str | None = None
    ) -> None:
        source = held_out_source(config, measure_on)
        self.corpus = corpus
        seed_everything(config.seed)  # the same weights everywhere
        with accelerator.main_process_first():  # the others then read the cache
            vae = build_vae(config, corpus.train, init=config.init)
            data = tokenize_corpus(corpus.train, vae.tokenizers, max_length=config.max_length)
        evaluator = Evaluator(config, corpus)
        super().__init__(
            config,
            vae,
            data,
            evaluator,
            held_out=HeldOut(source, corpus.valid, evaluator.check(vae, source), corpus.train, corpus.valid),
            sentence_vae=vae,
            skipped=corpus.skipped,
            accelerator=accelerator,
            autoencoder_share=config.autoencoder_warmup,
        )
        self.forward_options = {"unit_variance": config.unit_variance}

    def describe(self) -> str:
        """Return sentences, networks and tokenizer."""
        encoder, decoder = self.vae.encoder, self.vae.decoder
        return (
            f"{len(self.data):,} sentences, {len(self.evaluator.texts):,} to measure with; "
            f"{type(encoder).__name__} {count_weights(encoder):,} and {decoder.config.model_type} "
            f"{count_weights(decoder):,} weights; "
            f"{describe_tokenizer(self.config, self.vae, init=self.config.init)}"
        )

    def finish(self, run: RunFolder, result: LoopResult, *, complete: bool) -> None:
        """Write ``model/`` and, after the last step, ``evaluation.json`` and ``examples.txt``."""
        super().finish(run, result, complete=complete)
        if complete and isinstance(self.last_evaluation, Evaluation):
            self.last_evaluation = make_showcase(self.vae, self.corpus, self.last_evaluation)
            self.last_evaluation.write(run)


def build_task(
    config: OptimusConfig, accelerator: Any, *, measure_on: str | None = None, text_key: str | None = None
) -> VAETask:
    """Load the data and build the task.

    Args:
        config: all options.
        accelerator: an ``accelerate.Accelerator``.
        measure_on: a file to measure with in place of the run's own sentences.
        text_key: where the text is in its JSON lines; as in the run by default.

    Raises:
        ConfigError: when the data are nowhere, or cannot be used.
    """
    if not config.data:
        raise ConfigError(f"the preset {config.preset!r} needs sentences: give --data FILE, one a line")
    corpus = load_corpus(
        config.data,
        config.valid,
        text_key=config.text_key,
        limit=config.limit,
        measure_on=measure_on,
        measure_text_key=text_key,
    )
    return VAETask(config, corpus, accelerator, measure_on=measure_on)


def run_name(config: OptimusConfig) -> str:
    """Return the first part of a default folder name."""
    return f"{TRAINER}-{config.preset}-{config.mode}-{config.schedule}-seed{config.seed}"


VAE_TRAINER = Trainer(
    name=TRAINER,
    config_class=OptimusConfig,
    build=build_task,
    run_name=run_name,
    artifacts=("model/", "examples.txt", "curves.png", "metrics.csv"),
    free_on_resume=FREE_ON_RESUME,
)


def train(config: OptimusConfig | None = None, **options: Any) -> TrainResult:
    """Train a sentence VAE, or go on with a run; options as of `fq_toolkit.training.session.train`."""
    return session.train(VAE_TRAINER, config, **options)
