"""The training of a sentence VAE: one update, what is measured, and what a run leaves behind.

The loss is the model's own, so that tasks with labels or contexts train by the same steps; see
`fq_toolkit.optimus.model.losses` for its equations.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fq_toolkit.optimus.data.bucketing import BucketedIndices
from fq_toolkit.optimus.data.corpus import describe_skipped
from fq_toolkit.optimus.model.sentence_vae import SentenceVAE
from fq_toolkit.optimus.tasks.config import VAEConfig
from fq_toolkit.optimus.tasks.schedules import BetaSchedule
from fq_toolkit.training.accumulation import update
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.seeding import rank_seed, seed_everything
from fq_toolkit.training.storage.evaluation import write_evaluation
from fq_toolkit.training.storage.measured_data import MeasuredSet, digest_of
from fq_toolkit.training.storage.run_folder import RunFolder
from fq_toolkit.training.task import LoopResult, TrainingTask

# Folder in the run folder that SentenceVAE.from_pretrained reads.
MODEL = "model"
# The learning rate ends at this share of its top.
FINAL_LR = 0.1


class HeldOut(NamedTuple):
    """What a task is measured with.

    source: where it comes from, for people.
    rows: all of it, as JSON can hold it.
    usable: how many of the texts are not too long for the model.
    trained, measured: texts that were trained on and texts that are measured with; what is in both is a leak.
    noun: what these texts are.
    """

    source: str
    rows: list[Any]
    usable: int
    trained: Sequence[str]
    measured: Sequence[str]
    noun: str = "sentences"


class SentenceTask(TrainingTask):
    """A sentence VAE, or a model around one, in training.

    Args:
        config: all options.
        model: its forward takes a batch and ``beta, free_bits, length_weighted, deterministic`` and returns
            something with ``loss``, ``nll`` and ``kl``.
        data: what to train on: ``batch(rows)``, ``lengths()``, ``fingerprint()``, ``too_long``.
        evaluator: model -> figures with ``values()``, whose names are its ``columns``, and ``record()``.
        held_out: what the evaluator measures with.
        sentence_vae: the model itself, or the sentence VAE inside.
        skipped: reason -> lines that were left out.
        accelerator: an ``accelerate.Accelerator``.
        autoencoder_share: share of the run, at its start, without noise and KL term.

    Raises:
        ConfigError: when the rows do not fill a batch, or all rows to measure with are too long.
    """

    trained_on = "the sentences"

    def __init__(
        self,
        config: Any,
        model: nn.Module,
        data: Any,
        evaluator: Any,
        *,
        held_out: HeldOut,
        sentence_vae: SentenceVAE,
        skipped: dict[str, int],
        accelerator: Any,
        autoencoder_share: float = 0.0,
    ) -> None:
        if not held_out.usable:  # now, and not after the training
            raise ConfigError(
                f"nothing can be measured: no text of at most {config.max_length} tokens in "
                f"{held_out.source}; --valid names others"
            )
        self.config, self.accelerator = config, accelerator
        self.vae: Any = model.to(accelerator.device)
        self.sentence_vae = sentence_vae
        self.data, self.evaluator, self.held_out, self.skipped = data, evaluator, held_out, skipped
        self._fingerprint: str = data.fingerprint()  # once: every checkpoint asks for it
        rank, world = accelerator.process_index, accelerator.num_processes
        self.order = data_order(config, data, rank=rank, world=world)
        self.schedule = beta_schedule(config, autoencoder_share=autoencoder_share)
        self._beta, self._lr = 0.0, 0.0
        self.forward_options: dict[str, Any] = {}
        self.optimizer = make_optimizer(self.vae, config)
        # The wrapped model is for passes that a backward follows; under DDP it averages gradients. Measuring
        # and saving use the bare one.
        self.wrapped, self.optimizer = accelerator.prepare(self.vae, self.optimizer)
        self.vae.train()
        seed_everything(rank_seed(config.seed, rank))  # other noise on every process

    @abstractmethod
    def describe(self) -> str:
        """Return what is trained on what."""

    def step(self, step: int) -> dict[str, Tensor]:
        """Update once, from ``accumulate`` batches. Waits for nothing on the device."""
        config, phase = self.config, self.schedule(step)
        self._beta, self._lr = phase.beta, learning_rate(config, step)
        # A function of the step rather than a scheduler object: there is no state to save and restore.
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr
        # All rows of an update are drawn at once, so that accumulation does not change the order of the data.
        parts = self.order.next().split(config.batch_size)

        # A generator, as `update` runs each forward just before its backward: one graph is alive at a time.
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
                        **self.forward_options,
                    )
                values = {"loss/total": out.loss, "loss/nll": out.nll, "loss/kl": out.kl}
                yield out.loss.mean(), {name: value.mean() for name, value in values.items()}

        return update(self.accelerator, self.wrapped, self.optimizer, losses(), len(parts), clip=config.clip)

    def modules(self) -> dict[str, Any]:
        """Return the model."""
        return {"vae": self.vae}

    def optimizers(self) -> dict[str, Any]:
        """Return the optimizer."""
        return {"optimizer": self.optimizer}

    def orders(self) -> dict[str, Any]:
        """Return the order of the rows."""
        return {"order": self.order}

    @property
    def fingerprint(self) -> str:
        """Return a digest of the rows: tokenizers trained in place would give other rows other words."""
        return self._fingerprint

    def summary(self) -> str:
        """Return what is trained on what, and what was left out, in two lines at most."""
        config, skipped = self.config, dict(self.skipped)
        if self.data.too_long:
            skipped[f"longer than {config.max_length} tokens"] = self.data.too_long
        lines = [
            f"{self.describe()}; latent {config.latent_size} by {config.mode}; beta {config.schedule}, "
            f"free bits {config.free_bits:g}; {self.where()}",
            describe_skipped(skipped),
        ]
        return "\n".join(filter(None, lines))

    def gauges(self) -> dict[str, float]:
        """Return what the schedules said last."""
        return {"schedule/beta": self._beta, "learning rate/lr": self._lr}

    def columns(self) -> list[str]:
        """Return the columns of ``metrics.csv``."""
        names = ["seconds", "loss/total", "loss/nll", "loss/kl", "schedule/beta", "learning rate/lr"]
        return [*names, *self.evaluator.columns]

    def measured_on(self) -> dict[str, MeasuredSet]:
        """Return what the evaluator measures with."""
        source, rows = self.held_out.source, self.held_out.rows
        return {"valid": MeasuredSet(source, digest_of(rows), len(rows))}

    def evaluate(self) -> dict[str, float]:
        """Measure on what is held out; the random state of training is not touched."""
        self.last_evaluation = self.evaluator(self.vae)
        return dict(self.last_evaluation.values())

    def record(self) -> dict[str, Any]:
        """Return the last figures for ``evaluation.json``."""
        return {**self.last_evaluation.record(), "data": self.config.data}

    def finish(self, run: RunFolder, result: LoopResult, *, complete: bool) -> None:
        """Write ``model/``, the sentence VAE, and after the last step ``evaluation.json``."""
        self.sentence_vae.save_pretrained(run.path / MODEL)
        if complete and self.last_evaluation is not None:
            write_evaluation(
                run.evaluation,
                self.record(),
                step=result.step,
                seconds=result.seconds,
                measured_on=self.measured_on(),
                seed=self.config.seed,
            )


def held_out_source(config: VAEConfig, measure_on: str | None) -> str:
    """Return where the rows to measure with come from.

    Args:
        config: options of the run.
        measure_on: another source that was asked for.
    """
    return measure_on or config.valid or f"held out of {config.data}"


def data_order(config: VAEConfig, data: Any, *, rank: int, world: int) -> BucketedIndices:
    """Return the order of the rows, one update at a time.

    Raises:
        ConfigError: when the rows do not fill a batch.
    """
    try:
        rows = config.batch_size * config.accumulate
        return BucketedIndices(data.lengths(), rows, seed=config.seed, rank=rank, world=world)
    except ValueError as error:
        raise ConfigError(f"too few sentences of at most {config.max_length} tokens: {error}") from error


def beta_schedule(config: VAEConfig, *, autoencoder_share: float = 0.0) -> BetaSchedule:
    """Return step -> beta and whether noise is left out, for the options of a run."""
    try:
        return BetaSchedule(
            steps=config.steps,
            kind=config.schedule,
            beta=config.beta,
            cycles=config.n_cycle,
            start=config.beta_start,
            ratio_zero=config.ratio_zero,
            ratio_increase=config.ratio_increase,
            autoencoder_steps=round(autoencoder_share * config.steps),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def learning_rate(config: VAEConfig, step: int) -> float:
    """Return the learning rate of a step: a linear rise, then a cosine decay to a tenth.

    ``lr * min(1, (t + 1) / warmup) * (0.1 + 0.9 * (1 + cos(pi t / steps)) / 2)``.

    Args:
        config: ``lr``, ``warmup_steps`` and ``steps``.
        step: t, from 0.
    """
    rise = min(1.0, (step + 1) / max(1, config.warmup_steps))
    # min: a dry run of a finished run does steps beyond the last one.
    fall = 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / config.steps))
    return config.lr * rise * (FINAL_LR + (1 - FINAL_LR) * fall)


def make_optimizer(model: nn.Module, config: VAEConfig) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices only, not on biases and norms."""
    trained = [w for w in model.parameters() if w.requires_grad]
    groups = [
        {"params": [w for w in trained if w.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [w for w in trained if w.ndim <= 1], "weight_decay": 0.0},
    ]
    # fused: one call for all weights instead of several for each, which dominates in small networks.
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)
