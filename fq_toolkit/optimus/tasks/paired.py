"""What training on labelled sentences and on pairs of texts shares: options, token tables, the task."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import nn

from fq_toolkit.optimus.data.corpus import describe_skipped
from fq_toolkit.optimus.model.batch import Tokenizers, TokenRows, collate, tokenize
from fq_toolkit.optimus.tasks.another_file import (
    FEWEST,
    OtherEvaluation,
    check_source,
    evaluation_path,
    file_set,
    measured_line,
    tell_leaks,
    tell_skipped,
)
from fq_toolkit.optimus.tasks.config import VAEConfig
from fq_toolkit.optimus.tasks.vae.training import (
    MODEL,
    OptimusTask,
    beta_schedule,
    data_order,
    held_out_set,
    make_optimizer,
)
from fq_toolkit.training.bounds import at_least
from fq_toolkit.training.config import load_config
from fq_toolkit.training.errors import MISFITS, CheckpointError, ConfigError
from fq_toolkit.training.seeding import rank_seed, seed_everything
from fq_toolkit.training.session import Trainer, make_accelerator
from fq_toolkit.training.storage.atomic import write_atomic
from fq_toolkit.training.storage.evaluation import provenance
from fq_toolkit.training.storage.measured_data import KEY, MeasuredSet, check_measured, set_records
from fq_toolkit.training.storage.run_folder import RunFolder
from fq_toolkit.training.task import LoopResult, check_data


@dataclass(frozen=True)
class PairedConfig(VAEConfig):
    """Options that both tasks have; goes to ``config.json`` and back."""

    preset: str = "embedded"
    """Where the other options start: embedded, the corpus that comes with the package."""
    data: str = "embedded"
    """What to train on: embedded, or files (see --help of the task)."""
    eval_rows: Annotated[int, at_least(2)] = 200
    """Rows to measure with."""

    autoencoder_warmup: ClassVar[int] = 0  # the schedule asks for it; these tasks have none

    def __post_init__(self) -> None:
        """Check ranges, so that a wrong value is refused before anything is built."""
        super().__post_init__()
        if self.preset != "embedded":
            raise ConfigError(f"preset is {self.preset!r}; known: embedded")


class TokenTable:
    """Texts as token ids, to be cut into batches.

    Args:
        texts: one a row.
        tokenizers: of encoder and decoder.
        max_length: most tokens of a text.

    Attributes:
        fits: bool (N,), whether a text has at most ``max_length`` tokens.
    """

    def __init__(self, texts: Sequence[str], tokenizers: Tokenizers, *, max_length: int) -> None:
        # One token more than permitted stays, by which the texts that are too long are known.
        self.rows = tokenize(texts, tokenizers, max_length=max_length + 1)
        self.tokenizers = tokenizers
        self.fits = np.array(
            [
                max(len(a), len(b)) <= max_length
                for a, b in zip(self.rows.encoder, self.rows.decoder, strict=True)
            ],
            dtype=bool,
        )

    def batch(self, rows: Sequence[int]) -> Any:
        """Return a padded `TextBatch` of these rows, on the CPU."""
        read, written = ([part[i] for i in rows] for part in (self.rows.encoder, self.rows.decoder))
        return collate(TokenRows(read, written, 0), self.tokenizers)

    def lengths(self, rows: Iterable[int]) -> list[int]:
        """Return the decoder's tokens of these rows."""
        return [len(self.rows.decoder[i]) for i in rows]


class HeldOut(NamedTuple):
    """What a task is measured with.

    rows: all of it, as JSON can hold it.
    usable: how many of the rows are not too long for the model.
    trained, asked: texts that were trained on and texts that are measured with, by which a leak is known.
    noun: what these are.
    """

    rows: list[Any]
    usable: int
    trained: list[str]
    asked: list[str]
    noun: str


class PairedTask(OptimusTask):
    """A task of sentence VAEs with something beside the sentence; the loss is the model's.

    Args:
        config: all options.
        model: its forward takes a batch and ``beta, free_bits, length_weighted, deterministic`` and returns
            something with ``loss``, ``nll`` and ``kl``; ``encoder``, ``decoder`` and ``base`` are its parts.
        data: rows: ``batch(rows)``, ``lengths()``, ``fingerprint()``, ``too_long``, ``tokenizers``.
        evaluator: model -> figures with ``values()``; ``columns``.
        described: what the data are, for the summary.
        skipped: reason -> lines that were left out.
        held_out: what the evaluator measures with.
        accelerator: an ``accelerate.Accelerator``.
    """

    config: Any
    data: Any
    evaluator: Any

    def __init__(
        self,
        config: Any,
        model: nn.Module,
        data: Any,
        evaluator: Any,
        *,
        described: str,
        skipped: dict[str, int],
        held_out: HeldOut,
        accelerator: Any,
    ) -> None:
        self.config, self.accelerator = config, accelerator
        self.vae: Any = model.to(accelerator.device)
        self.data, self.evaluator = data, evaluator
        self.described, self.skipped, self.held_out = described, skipped, held_out
        rank, world = accelerator.process_index, accelerator.num_processes
        self.order = data_order(config, data, rank=rank, world=world)
        self.schedule = beta_schedule(config)
        self.last_evaluation: Any = None
        self._beta, self._lr = 0.0, 0.0
        self.optimizer = make_optimizer(self.vae, config)
        self.wrapped, self.optimizer = accelerator.prepare(self.vae, self.optimizer)
        self.vae.train()
        seed_everything(rank_seed(config.seed, rank))

    def summary(self) -> str:
        """Return what is trained on what, and what was left out."""
        config, device = self.config, self.accelerator.device
        weights = sum(weight.numel() for weight in self.vae.parameters())
        where = f"{device}, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
        skipped = self.skipped | (
            {f"longer than {config.max_length} tokens": self.data.too_long} if self.data.too_long else {}
        )
        lines = [
            f"{self.described}; {weights:,} weights; latent {config.latent_size} by {config.mode}; "
            f"beta {config.schedule}, free bits {config.free_bits:g}; {where}",
            describe_skipped(skipped),
        ]
        return "\n".join(filter(None, lines))

    def columns(self) -> list[str]:
        """Return the columns of ``metrics.csv``."""
        names = ["seconds", "loss/total", "loss/nll", "loss/kl", "schedule/beta", "learning rate/lr"]
        return names + list(self.evaluator.columns)

    def measured_on(self) -> dict[str, MeasuredSet]:
        """Return what the evaluator measures with."""
        return held_out_set(self.config, self.held_out.rows)

    def evaluate(self) -> dict[str, float]:
        """Measure on what is kept for that; the random state of training is not touched."""
        self.last_evaluation = self.evaluator(self.vae)
        return dict(self.last_evaluation.values())

    def finish(self, run: RunFolder, result: LoopResult, *, complete: bool) -> None:
        """Write ``model/``, the sentence VAE within, and after the last step ``evaluation.json``."""
        self.vae.base.save_pretrained(run.path / MODEL)
        if complete and self.last_evaluation is not None:
            write_figures(
                run.evaluation,
                self.config,
                self.last_evaluation,
                step=result.step,
                seconds=result.seconds,
                measured_on=self.measured_on(),
            )


def write_figures(
    target: Path,
    config: Any,
    figures: Any,
    *,
    step: int,
    seconds: float,
    measured_on: Mapping[str, MeasuredSet],
    **more: Any,
) -> None:
    """Write ``evaluation.json``, or the file of another measurement: figures and what they go with."""
    record = {
        "step": step,
        "training_seconds": round(seconds, 1),
        **figures._asdict(),
        "data": config.data,
        KEY: set_records(measured_on),
        "seed": config.seed,
        **more,
        **provenance(),
    }
    write_atomic(target, (json.dumps(record, indent=2) + "\n").encode())


def load_task(trainer: Trainer[Any], path: Path, *, step: int | None = None) -> tuple[Any, int, float]:
    """Read a run back: its task with trained weights, the step, and the seconds of training.

    Raises:
        RunError: when it is no run folder.
        CheckpointError: when the checkpoint is missing, damaged or of another model.
        ConfigError: when it is a run of another trainer, or its data are gone.
    """
    folder = RunFolder.open(path)
    config = load_config(trainer.config_class, folder.config, trainer=trainer.name)
    checkpoint = folder.load_checkpoint(step)
    task: Any = trainer.build(config, make_accelerator(config))
    check_data(checkpoint.state["task"], task.fingerprint, what=task.trained_on, source=config.data)
    try:
        task.vae.load_state_dict(checkpoint.state["task"]["vae"])
    except MISFITS as error:
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.step} in {path} does not fit: {error}. "
            f"Are the rows of {config.data} still those of the run?"
        ) from error
    task.vae.eval()
    return task, checkpoint.step, checkpoint.state["seconds"]


def evaluate_task_run(trainer: Trainer[Any], path: Path, *, step: int | None = None) -> tuple[int, Any]:
    """Measure a run again and write ``evaluation.json``; return the step and the figures.

    Raises:
        RunError, CheckpointError, ConfigError: as :func:`load_task`; also when the rows to measure changed.
    """
    task, reached, seconds = load_task(trainer, path, step=step)
    folder, measured_on = RunFolder.open(path), task.measured_on()
    check_measured(folder.checkpoints(), reached, measured_on)
    task.evaluate()
    write_figures(
        folder.evaluation,
        task.config,
        task.last_evaluation,
        step=reached,
        seconds=seconds,
        measured_on=measured_on,
    )
    return reached, task.last_evaluation


def evaluate_task_on(
    trainer: Trainer[Any], path: Path, source: str, *, step: int | None = None, **keys: str | None
) -> OtherEvaluation:
    """Measure a run on another file, and write the figures into a file of their own.

    Args:
        trainer: that made the run.
        path: the run folder.
        source: the file.
        step: which checkpoint; the newest by default.
        **keys: where things are in its lines, as the trainer's ``build`` takes them.

    Raises:
        RunError, CheckpointError: as :func:`load_task`.
        ConfigError: the same, and when the file holds nothing to measure with.
    """
    check_source(source)
    build: Any = trainer.build
    build = partial(build, measure_on=source, **keys)
    task, reached, seconds = load_task(dataclasses.replace(trainer, build=build), path, step=step)
    held_out = task.held_out
    if held_out.usable < FEWEST:
        raise ConfigError(
            f"{source} holds {held_out.usable} {held_out.noun} of at most {task.config.max_length} tokens; "
            f"at least {FEWEST} are needed to measure with"
        )
    tell_skipped(source, task.skipped)
    trained_on = tell_leaks(source, held_out.trained, held_out.asked, noun=held_out.noun)
    measured_on = file_set(source, held_out.rows)
    target = evaluation_path(RunFolder.open(path), measured_on["valid"])
    task.evaluate()
    write_figures(
        target,
        task.config,
        task.last_evaluation,
        step=reached,
        seconds=seconds,
        measured_on=measured_on,
        trained_on=trained_on,
    )
    line = measured_line(target, measured_on["valid"], step=reached)
    return OtherEvaluation(reached, task.last_evaluation, line)
