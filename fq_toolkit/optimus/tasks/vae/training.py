"""The sentence-VAE trainer: one update, its state, its evaluation, and what it leaves behind."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fq_toolkit.layers.latent.injection import inject_latent
from fq_toolkit.optimus.data.bucketing import BucketedIndices
from fq_toolkit.optimus.data.corpus import Corpus, describe_skipped, load_corpus
from fq_toolkit.optimus.data.tokenized import TokenizedTexts, tokenize_corpus
from fq_toolkit.optimus.data.tokenizer_training import train_tokenizers
from fq_toolkit.optimus.model.building import small_networks
from fq_toolkit.optimus.model.hub import load_pretrained
from fq_toolkit.optimus.model.sentence_vae import SentenceVAE
from fq_toolkit.optimus.tasks.config import FREE_ON_RESUME, SMALL
from fq_toolkit.optimus.tasks.schedules import BetaSchedule
from fq_toolkit.optimus.tasks.vae.config import TRAINER, OptimusConfig
from fq_toolkit.optimus.tasks.vae.evaluation import Evaluation, Evaluator, write_evaluation
from fq_toolkit.optimus.tasks.vae.showcase import Showcase, make_showcase
from fq_toolkit.training import session
from fq_toolkit.training.accumulation import update
from fq_toolkit.training.errors import ConfigError, RunError
from fq_toolkit.training.reporting.progress import Reporter
from fq_toolkit.training.seeding import rank_seed, seed_everything
from fq_toolkit.training.session import Trainer, TrainResult
from fq_toolkit.training.storage.measured_data import MeasuredSet, digest_of
from fq_toolkit.training.storage.run_folder import RunFolder
from fq_toolkit.training.task import LoopResult, TrainingTask

# Folder in the run folder that SentenceVAE.from_pretrained reads.
MODEL = "model"
# The learning rate ends at this share of its top.
FINAL_LR = 0.1


class OptimusTask(TrainingTask):
    """A sentence VAE in training: the task that :func:`fq_toolkit.training.loop.run_loop` drives.

    Args:
        config: all options.
        corpus: the sentences.
        accelerator: an ``accelerate.Accelerator``.

    Raises:
        ConfigError: when the sentences do not fill a batch, or those to measure with are too few or too long.
    """

    trained_on = "the sentences"

    def __init__(self, config: OptimusConfig, corpus: Corpus, accelerator: Any) -> None:
        self.config, self.corpus, self.accelerator = config, corpus, accelerator
        rank, world = accelerator.process_index, accelerator.num_processes
        seed_everything(config.seed)  # the same weights everywhere
        with accelerator.main_process_first():  # the others then read the cache
            self.vae = build_vae(config, corpus.train)
            self.data = tokenize_corpus(corpus.train, self.vae.tokenizers, max_length=config.max_length)
        self.vae.to(accelerator.device)
        self.order = data_order(config, self.data, rank=rank, world=world)
        self.schedule = beta_schedule(config)
        self.evaluator = Evaluator(config, corpus)
        self.evaluator.check(self.vae)
        self.last_evaluation: Evaluation | Showcase | None = None
        self._beta, self._lr = 0.0, 0.0
        self.optimizer = make_optimizer(self.vae, config)
        # The wrapped one is for the pass that is followed by a backward; under DDP it averages gradients.
        self.wrapped, self.optimizer = accelerator.prepare(self.vae, self.optimizer)
        self.vae.train()
        seed_everything(rank_seed(config.seed, rank))  # other noise on every process

    def step(self, step: int) -> dict[str, Tensor]:
        """Update once, from ``accumulate`` batches. Waits for nothing on the device."""
        config, phase = self.config, self.schedule(step)
        self._beta, self._lr = phase.beta, learning_rate(config, step)
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr
        parts = self.order.next().split(config.batch_size)

        def losses() -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
            for rows in parts:
                batch = self.data.batch(rows).to(self.accelerator.device, non_blocking=True)
                with self.accelerator.autocast():
                    out = self.wrapped(
                        batch,
                        beta=phase.beta,
                        free_bits=config.free_bits,
                        length_weighted=config.length_weighted,
                        deterministic=phase.deterministic,
                    )
                values = {"loss/total": out.loss, "loss/nll": out.nll, "loss/kl": out.kl}
                yield out.loss.mean(), {name: value.mean() for name, value in values.items()}

        return update(self.accelerator, self.wrapped, self.optimizer, losses(), len(parts), clip=config.clip)

    def summary(self) -> str:
        """Return what is trained on what, and what was left out, in two lines at most."""
        config, device = self.config, self.accelerator.device
        sizes = [sum(w.numel() for w in part.parameters()) for part in (self.vae.encoder, self.vae.decoder)]
        where = f"{device}, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
        if self.accelerator.num_processes > 1:
            where += f", {self.accelerator.num_processes} processes"
        skipped = dict(self.corpus.skipped)
        if self.data.too_long:
            skipped[f"longer than {config.max_length} tokens"] = self.data.too_long
        lines = [
            f"{len(self.data):,} sentences, {len(self.evaluator.texts):,} to measure with; "
            f"{type(self.vae.encoder).__name__} {sizes[0]:,} and {self.vae.decoder.config.model_type} "
            f"{sizes[1]:,} weights; {_describe_tokenizer(config, self.vae)}; "
            f"latent {config.latent_size} by {config.mode}; beta {config.schedule}, "
            f"free bits {config.free_bits:g}; {where}",
            describe_skipped(skipped),
        ]
        return "\n".join(filter(None, lines))

    def gauges(self) -> dict[str, float]:
        """Return what the schedules said last."""
        return {"schedule/beta": self._beta, "learning rate/lr": self._lr}

    def columns(self) -> list[str]:
        """Return the columns of ``metrics.csv``."""
        names = ["seconds", "loss/total", "loss/nll", "loss/kl", "schedule/beta", "learning rate/lr"]
        return [*names, *self.evaluator.columns()]

    def measured_on(self) -> dict[str, MeasuredSet]:
        """Return the sentences to measure with."""
        return held_out_set(self.config, self.corpus.valid)

    def evaluate(self) -> dict[str, float]:
        """Measure on the sentences kept for that; the random state of training is not touched."""
        result = self.last_evaluation = self.evaluator(self.vae)
        return self.evaluator.values(result)

    def modules(self) -> dict[str, Any]:
        """Return the model."""
        return {"vae": self.vae}

    def optimizers(self) -> dict[str, Any]:
        """Return the optimizer."""
        return {"optimizer": self.optimizer}

    def orders(self) -> dict[str, Any]:
        """Return the order of the sentences."""
        return {"order": self.order}

    @property
    def fingerprint(self) -> str:
        """Return by what one knows the sentences: tokenizers trained in place give other data other words."""
        return self.data.fingerprint()

    def finish(self, run: RunFolder, result: LoopResult, *, complete: bool) -> None:
        """Write ``model/`` and, after the last step, ``evaluation.json`` and ``examples.txt``."""
        self.vae.save_pretrained(run.path / MODEL)
        if complete and isinstance(self.last_evaluation, Evaluation):
            figures = self.last_evaluation
            write_evaluation(
                run.evaluation,
                self.config,
                figures,
                step=result.step,
                seconds=result.seconds,
                measured_on=self.measured_on(),
            )
            self.last_evaluation = make_showcase(self.vae, self.corpus, figures)
            self.last_evaluation.write(run)


def build_vae(config: OptimusConfig, sentences: list[str]) -> SentenceVAE:
    """Return the networks of a run at its start.

    Raises:
        RunError: when a pretrained network cannot be loaded.
        ConfigError: when the networks have no room for ``max_length`` tokens, no such pooling, or the decoder
            no place for a latent in this mode; or when the model of ``init`` is another than is asked for.
    """
    init = getattr(config, "init", None)  # the other tasks have no such option
    if init is not None:
        return _trained_vae(init, config)
    if config.encoder == SMALL:
        tokenizers = train_tokenizers(sentences, config.vocab_size, kind=config.tokenizer)
        encoder, decoder = small_networks(
            tokenizers,
            layers=config.layers,
            width=config.width,
            heads=config.heads,
            dropout=config.dropout,
            positions=config.max_length + 1,  # the memory takes the decoder's first
        )
    else:
        encoder, decoder, tokenizers = load_pretrained(config.encoder, config.decoder)
        # Many checkpoints are in bfloat16, in which small updates vanish: --precision is for the arithmetic.
        encoder, decoder = encoder.float(), decoder.float()
    try:
        inject_latent(decoder, config.mode, config.latent_size, init_std=config.init_std)
        return SentenceVAE(
            encoder,
            decoder,
            tokenizers,
            latent_size=config.latent_size,
            pooling=config.pooling,
            max_length=config.max_length,
            init_std=config.init_std,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _describe_tokenizer(config: OptimusConfig, vae: SentenceVAE) -> str:
    """Whose words the run has: what was trained in place, or came with the networks."""
    count = len(vae.tokenizers.decoder)
    if config.init is not None:
        return f"{count:,} tokens of {config.init}"
    if config.encoder != SMALL:
        return f"{count:,} tokens of {config.decoder}"
    return f"{count:,} {'words' if config.tokenizer == 'word' else 'subwords'} trained in place"


def _trained_vae(init: str, config: OptimusConfig) -> SentenceVAE:
    """The model of another run to go on from; its tokenizers read the new sentences.

    Raises:
        RunError: there is no such model, or it is damaged.
        ConfigError: it is another than the options ask for.
    """
    try:
        vae = SentenceVAE.from_pretrained(init)
    except ValueError as error:
        raise RunError(f"--init: {error}") from error
    for name, found in (("latent_size", vae.latent_size), ("mode", vae.decoder.latent_spec.mode)):
        if getattr(config, name) != found:
            option = name.replace("_", "-")
            raise ConfigError(
                f"the model of --init {init} has --{option} {found}, and {getattr(config, name)} is "
                f"asked for; pass --{option} {found}"
            )
    if config.max_length > vae.max_length:
        raise ConfigError(
            f"the model of --init {init} reads {vae.max_length} tokens; pass --max-length {vae.max_length}"
        )
    return vae.float().train()


def held_out_set(config: Any, rows: Iterable[Any]) -> dict[str, MeasuredSet]:
    """Return what a run is measured on: its ``valid``, or the part of its ``data`` that is held out.

    Args:
        config: options of any sentence VAE.
        rows: all of them, as JSON can hold them.
    """
    kept = list(rows)
    file = getattr(config, "valid", None) or f"held out of {config.data}"
    return {"valid": MeasuredSet(file, digest_of(kept), len(kept))}


def data_order(config: OptimusConfig, data: TokenizedTexts, *, rank: int, world: int) -> BucketedIndices:
    """Return the order of the sentences, one update at a time.

    Raises:
        ConfigError: when the sentences do not fill a batch.
    """
    try:
        rows = config.batch_size * config.accumulate
        return BucketedIndices(data.lengths(), rows, seed=config.seed, rank=rank, world=world)
    except ValueError as error:
        raise ConfigError(f"too few sentences of at most {config.max_length} tokens: {error}") from error


def beta_schedule(config: OptimusConfig) -> BetaSchedule:
    """Return step -> beta and whether noise is left out."""
    try:
        return BetaSchedule(
            steps=config.steps,
            kind=config.schedule,
            beta=config.beta,
            cycles=config.n_cycle,
            ratio_zero=config.ratio_zero,
            ratio_increase=config.ratio_increase,
            autoencoder_steps=round(config.autoencoder_warmup * config.steps),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def learning_rate(config: OptimusConfig, step: int) -> float:
    """Return the rate of a step: a linear rise, then a cosine down to a tenth.

    Args:
        config: ``lr``, ``warmup_steps`` and ``steps``.
        step: from 0.
    """
    rise = min(1.0, (step + 1) / max(1, config.warmup_steps))
    fall = 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / config.steps))
    return config.lr * rise * (FINAL_LR + (1 - FINAL_LR) * fall)


def make_optimizer(model: nn.Module, config: OptimusConfig) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices alone: not on biases and norms."""
    trained = [w for w in model.parameters() if w.requires_grad]
    groups = [
        {"params": [w for w in trained if w.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [w for w in trained if w.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def build_task(config: OptimusConfig, accelerator: Any) -> OptimusTask:
    """Load the data and build the task.

    Raises:
        ConfigError: when the data are nowhere, or cannot be used.
    """
    if not config.data:
        raise ConfigError(f"the preset {config.preset!r} needs sentences: give --data FILE, one a line")
    corpus = load_corpus(config.data, config.valid, text_key=config.text_key, limit=config.limit)
    return OptimusTask(config, corpus, accelerator)


def run_name(config: OptimusConfig) -> str:
    """Return the first part of a default folder name."""
    return f"{TRAINER}-{config.preset}-{config.mode}-{config.schedule}-seed{config.seed}"


OPTIMUS_TRAINER = Trainer(
    name=TRAINER,
    config_class=OptimusConfig,
    build=build_task,
    run_name=run_name,
    artifacts=("model/", "examples.txt", "curves.png", "metrics.csv"),
    free_on_resume=FREE_ON_RESUME,
)


def train(
    config: OptimusConfig | None = None,
    *,
    out: Path | None = None,
    resume: Path | None = None,
    reporter: Reporter | None = None,
    stop_after: int | None = None,
) -> TrainResult:
    """Train a sentence VAE, or go on with a run; see :func:`fq_toolkit.training.session.train`."""
    return session.train(
        OPTIMUS_TRAINER, config, out=out, resume=resume, reporter=reporter, stop_after=stop_after
    )
