"""The FQ-GAN trainer: the state of a GAN in training, its evaluation, and the run around it."""

import copy
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fq_toolkit.fqgan.data.data_identity import fingerprint, real_images
from fq_toolkit.fqgan.data.datasets import ImageDataset, load_dataset
from fq_toolkit.fqgan.gan.config import TRAINER, FQGANConfig, check_warmup
from fq_toolkit.fqgan.gan.evaluation import EVALUATION_SEED, Evaluation, Evaluator, evaluation_columns
from fq_toolkit.fqgan.gan.networks.quantization import read_dictionary
from fq_toolkit.fqgan.gan.sampling import Sampler, class_columns, save_grid
from fq_toolkit.fqgan.gan.updates import GANUpdates
from fq_toolkit.fqgan.metrics.extractors import load_extractor
from fq_toolkit.training import session
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.reporting.progress import Reporter
from fq_toolkit.training.seeding import isolated_rng
from fq_toolkit.training.session import Trainer, TrainResult
from fq_toolkit.training.storage.atomic import write_atomic
from fq_toolkit.training.storage.evaluation import provenance
from fq_toolkit.training.storage.measured_data import KEY, MeasuredSet, set_records
from fq_toolkit.training.storage.run_folder import RunFolder
from fq_toolkit.training.task import LoopResult, TrainingTask

PREVIEW_ROWS, PREVIEW_CLASSES = 8, 16


class FQGAN(GANUpdates, TrainingTask):
    """A GAN in training: the task that :func:`fq_toolkit.training.loop.run_loop` drives.

    Args:
        config: all options.
        data: the real images.
        accelerator: an ``accelerate.Accelerator``.
    """

    trained_on = "the images"
    last_evaluation: Evaluation | None = None

    def __init__(self, config: FQGANConfig, data: ImageDataset, accelerator: Any) -> None:
        super().__init__(config, data, accelerator)
        self.evaluator: Evaluator | None = None

    def summary(self) -> str:
        """Return one line: data, networks, quantized blocks, device."""
        config, images = self.config, self.data.images
        sizes = [
            sum(weight.numel() for weight in model.parameters())
            for model in (self.generator, self.discriminator)
        ]
        layers = ", ".join(
            f"block {block} ({layer.dim} channels)"
            for block, layer in zip(self.quantized_blocks, self.quantizers, strict=True)
        )
        fq = f"fq {config.fq}" + (f", K {config.num_codes}, after {layers}" if layers else "")
        device, threads = self.accelerator.device, torch.get_num_threads()
        where = f"{device}, {threads} threads" if device.type == "cpu" else str(device)
        if self.accelerator.num_processes > 1:
            where += f", {self.accelerator.num_processes} processes"
        found = f"{self.data.found}\n" if self.data.found else ""
        return (
            f"{found}{len(images)} images {'x'.join(map(str, images.shape[1:]))}, "
            f"{self.data.num_classes} classes; {config.family} generator {sizes[0]:,} and "
            f"discriminator {sizes[1]:,} weights; {fq}; {where}"
        )

    def gauges(self) -> dict[str, float]:
        """Return how much of each dictionary is in use, and the strength of quantization."""
        readings = {}
        for block, layer in zip(self.quantized_blocks, self.quantizers, strict=True):
            report = read_dictionary(layer)
            readings[f"usage/block{block}"] = report.usage
            readings[f"perplexity/block{block}"] = report.perplexity
        if self.quantizers and self.config.fq == "straight_through":
            readings["strength/fq"] = self.strength
        return readings

    def columns(self) -> list[str]:
        """Return the columns of ``metrics.csv``."""
        blocks = self.quantized_blocks
        names = ["seconds", "loss/d", "loss/g", "score/real", "score/fake"]
        if blocks:
            names += ["commitment/d", "commitment/g"]
            names += [f"{kind}/block{block}" for kind in ("usage", "perplexity") for block in blocks]
            names += ["strength/fq"] * (self.config.fq == "straight_through")
        names += list(self.penalties)
        return [*names, *evaluation_columns(self.ready_evaluator().extractor, self.data)]

    def measured_on(self) -> dict[str, MeasuredSet]:
        """Return the real images."""
        return real_images(self.config.data, self.data)

    def prepare_evaluation(self) -> None:
        """Load the feature extractor (the first time it is trained) and look at the real images."""
        self.ready_evaluator()

    def ready_evaluator(self) -> Evaluator:
        """Return what :meth:`prepare_evaluation` prepares."""
        if self.evaluator is None:
            with self.accelerator.main_process_first():
                extractor = load_extractor(self.config.extractor, self.data)
            self.evaluator = Evaluator(self.data, extractor, self.accelerator)
        return self.evaluator

    def sampler(self) -> Sampler:
        """Return a sampler of the averaged generator with fresh batch-norm statistics."""
        return calibrated_sampler(self.average.model)

    def measure(self) -> Evaluation:
        """Evaluate the averaged generator; the random state of training is not touched."""
        return self.ready_evaluator()(self.sampler(), samples=self.config.eval_samples)

    def evaluate(self) -> dict[str, float]:
        """Return :meth:`measure` as columns."""
        self.last_evaluation = self.measure()
        return self.last_evaluation.columns()

    def preview(self, path: Path) -> None:
        """Write a PNG of samples, one column a class, the same noise every time."""
        sampler = self.sampler()
        with isolated_rng(EVALUATION_SEED):
            classes = range(min(self.data.num_classes, PREVIEW_CLASSES))
            images = class_columns(sampler, classes, PREVIEW_ROWS)
        save_grid(images, path, columns=len(classes), titles=[str(c) for c in classes])

    def modules(self) -> dict[str, Any]:
        """Return both networks (with dictionaries) and the average of the generator."""
        return {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "average": self.average,
        }

    def optimizers(self) -> dict[str, Any]:
        """Return both optimizers."""
        return {"g_optimizer": self.g_optimizer, "d_optimizer": self.d_optimizer}

    def orders(self) -> dict[str, Any]:
        """Return the order of the images."""
        return {"order": self.order}

    def extra_state(self) -> dict[str, Any]:
        """Return the last penalties, and the average that path length regularization pulls to."""
        return {"penalties": {**self.penalties, "path average": self.path_penalty.average}}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore the penalties."""
        device = self.accelerator.device
        self.penalties = {name: state["penalties"][name].to(device) for name in self.penalties}
        self.path_penalty.average = state["penalties"]["path average"].to(device)

    @cached_property
    def fingerprint(self) -> str:
        """Return a digest of images, labels and names of classes."""
        data = self.data
        return fingerprint([data.images], data.labels, data.class_names)

    def finish(self, run: RunFolder, result: LoopResult, *, complete: bool) -> None:
        """Write ``samples.png`` and, after the last step, ``evaluation.json``."""
        self.preview(run.samples)
        if complete and self.last_evaluation is not None:
            write_evaluation(
                run,
                self.config,
                self.last_evaluation,
                step=result.step,
                seconds=result.seconds,
                measured_on=self.measured_on(),
            )


def calibrated_sampler(generator: nn.Module, *, truncation: float | None = None) -> Sampler:
    """Return a sampler of a copy of the generator with fresh, reproducible batch-norm statistics."""
    sampler = Sampler(copy.deepcopy(generator), truncation=truncation)
    with isolated_rng(EVALUATION_SEED):
        sampler.recalibrate()
    return sampler


def build_gan(config: FQGANConfig, accelerator: Any) -> FQGAN:
    """Load the data and build the task.

    Raises:
        ConfigError: when the options name no images, images that do not fit, or a warm-up without an end.
    """
    check_warmup(config)
    if not config.data:
        raise ConfigError(f"the preset {config.preset!r} needs images: give --data PATH")
    data = load_dataset(config.data, **config.reading())
    return FQGAN(config, data, accelerator)


def run_name(config: FQGANConfig) -> str:
    """Return the first part of a default folder name."""
    return f"{TRAINER}-{config.preset}-{config.fq}-seed{config.seed}"


GAN_TRAINER = Trainer(
    name=TRAINER,
    config_class=FQGANConfig,
    build=build_gan,
    run_name=run_name,
    artifacts=("samples.png", "curves.png", "metrics.csv"),
)


def train(
    config: FQGANConfig | None = None,
    *,
    out: Path | None = None,
    resume: Path | None = None,
    reporter: Reporter | None = None,
    stop_after: int | None = None,
) -> TrainResult:
    """Train a GAN, or go on with a run: :func:`fq_toolkit.training.session.train` of this trainer."""
    return session.train(
        GAN_TRAINER, config, out=out, resume=resume, reporter=reporter, stop_after=stop_after
    )


def write_evaluation(
    run: RunFolder,
    config: FQGANConfig,
    evaluation: Evaluation,
    *,
    step: int,
    seconds: float,
    measured_on: Mapping[str, MeasuredSet],
) -> None:
    """Write ``evaluation.json``: the figures and what they were measured with."""
    record = {
        "step": step,
        "training_seconds": round(seconds, 1),
        **evaluation._asdict(),
        KEY: set_records(measured_on),
        "fq": config.fq,
        "seed": config.seed,
        **provenance(),
    }
    write_atomic(run.evaluation, (json.dumps(record, indent=2) + "\n").encode())
