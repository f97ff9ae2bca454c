"""The FQ-GAN trainer: one class-conditional GAN step, its state, its evaluation, and the run around it."""

import copy
import json
import logging
import platform
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fq_toolkit import __version__
from fq_toolkit.fqgan.config import FREE_ON_RESUME, TRAINER, FQGANConfig
from fq_toolkit.fqgan.datasets import ImageDataset, load_dataset
from fq_toolkit.fqgan.evaluation import EVALUATION_SEED, Evaluation, Evaluator
from fq_toolkit.fqgan.extractors import load_extractor
from fq_toolkit.fqgan.losses import hinge_discriminator_loss, hinge_generator_loss
from fq_toolkit.fqgan.models import build_networks
from fq_toolkit.fqgan.quantization import (
    halves_commitment,
    quantizer_factory,
    quantizers,
    read_dictionary,
    warmup_strength,
)
from fq_toolkit.fqgan.sampling import Sampler, class_columns, save_grid
from fq_toolkit.layers import commitment_loss, frozen
from fq_toolkit.training.atomic import write_atomic
from fq_toolkit.training.averaging import WeightAverage
from fq_toolkit.training.config import changes, load_config, save_config
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.extras import require
from fq_toolkit.training.loop import LoopResult, Schedule, restore, run_loop
from fq_toolkit.training.metrics_log import MetricsLog
from fq_toolkit.training.optimizer_state import load_optimizer
from fq_toolkit.training.plots import plot_curves
from fq_toolkit.training.progress import (
    LineReporter,
    Reporter,
    SilentReporter,
    format_duration,
    format_values,
)
from fq_toolkit.training.run_folder import RunFolder
from fq_toolkit.training.sampling_order import ShuffledIndices
from fq_toolkit.training.seeding import isolated_rng, rank_seed, seed_everything

log = logging.getLogger("fq_toolkit")

PREVIEW_ROWS = 8


class FQGAN:
    """A GAN in training: the task that :func:`fq_toolkit.training.loop.run_loop` drives.

    Args:
        config: all options.
        data: the real images.
        accelerator: an ``accelerate.Accelerator``.
    """

    def __init__(self, config: FQGANConfig, data: ImageDataset, accelerator: Any) -> None:
        self.config, self.data, self.accelerator = config, data, accelerator
        device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
        seed_everything(config.seed)  # the same weights everywhere
        self.generator, self.discriminator = build_networks(config, data, quantizer_factory(config))
        self.generator.to(device)
        self.discriminator.to(device)
        self.average = WeightAverage(self.generator, decay=config.ema_decay)
        self.quantizers = quantizers(self.discriminator)
        self.order = ShuffledIndices(
            len(data.images), config.batch_size, seed=config.seed, rank=rank, world=world
        )
        self.images, self.labels = data.images.to(device), data.labels.to(device)
        self.evaluator: Evaluator | None = None
        self.last_evaluation: Evaluation | None = None
        self.strength = 0.0
        self.g_optimizer, self.d_optimizer = (
            torch.optim.Adam(model.parameters(), lr=lr, betas=config.betas, eps=1e-8, fused=True)
            for model, lr in ((self.generator, config.g_lr), (self.discriminator, config.d_lr))
        )
        # The wrapped networks are for the pass that is followed by a backward through their own weights;
        # under DDP that is where gradients are averaged. Everything else calls the bare ones.
        self.wrapped_g, self.wrapped_d, self.g_optimizer, self.d_optimizer = accelerator.prepare(
            self.generator, self.discriminator, self.g_optimizer, self.d_optimizer
        )
        seed_everything(rank_seed(config.seed, rank))  # other noise on every process

    def step(self, step: int) -> dict[str, Tensor]:
        """Update D ``d_steps`` times and G once. Waits for nothing on the device."""
        if self.config.fq == "straight_through":
            self.strength = warmup_strength(self.config, step)
            for layer in self.quantizers:
                layer.strength = self.strength
        values = {}
        for _ in range(self.config.d_steps):
            values = self._discriminator_step()
        values |= self._generator_step()
        self.average.update()
        return values

    def _noise(self) -> tuple[Tensor, Tensor]:
        """Return noise (B, latent_size) and classes int64 (B,)."""
        count, device = self.config.batch_size, self.accelerator.device
        z = torch.randn(count, self.config.latent_size, device=device)
        return z, torch.randint(self.data.num_classes, (count,), device=device)

    def _discriminator_step(self) -> dict[str, Tensor]:
        """One update of D: fake and real in one concatenated pass, so that the dictionaries move once."""
        rows = self.order.next().to(self.accelerator.device)
        z, fake_labels = self._noise()
        self.d_optimizer.zero_grad()
        with self.accelerator.autocast():
            with torch.no_grad():
                fake = self.generator(z, fake_labels)
            images = torch.cat([fake, self.images[rows].to(fake.dtype)])
            scores = self.wrapped_d(images, torch.cat([fake_labels, self.labels[rows]])).float()
        fake_scores, real_scores = scores.chunk(2)
        adversarial = hinge_discriminator_loss(real_scores, fake_scores)
        values = {
            "loss/d": adversarial,
            "score/real": real_scores.mean(),
            "score/fake": fake_scores.mean(),
        }
        loss = adversarial
        if self.quantizers:
            values["commitment/d"] = halves_commitment(self.discriminator)
            loss = loss + values["commitment/d"]
        self.accelerator.backward(loss)
        self.d_optimizer.step()
        return {name: value.detach() for name, value in values.items()}

    def _generator_step(self) -> dict[str, Tensor]:
        """One update of G against a discriminator whose weights get no gradient."""
        z, labels = self._noise()
        self.g_optimizer.zero_grad()
        self.discriminator.requires_grad_(False)
        holds_still = not self.config.fq_update_in_generator_step
        with frozen(self.discriminator) if holds_still else nullcontext():
            with self.accelerator.autocast():
                scores = self.discriminator(self.wrapped_g(z, labels), labels).float()
            adversarial = hinge_generator_loss(scores)
            values, loss = {"loss/g": adversarial}, adversarial
            if self.quantizers:
                values["commitment/g"] = commitment_loss(self.discriminator)
                if self.config.fq_in_generator_loss:
                    loss = loss + values["commitment/g"]
        self.accelerator.backward(loss)
        self.discriminator.requires_grad_(True)
        self.g_optimizer.step()
        return {name: value.detach() for name, value in values.items()}

    def summary(self) -> str:
        """Return one line: data, networks, quantized blocks, device."""
        config, images = self.config, self.data.images
        sizes = [
            sum(weight.numel() for weight in model.parameters())
            for model in (self.generator, self.discriminator)
        ]
        layers = ", ".join(
            f"block {block} ({layer.dim} channels)"
            for block, layer in zip(self.discriminator.quantizers, self.quantizers, strict=True)
        )
        fq = f"fq {config.fq}" + (f", K {config.num_codes}, after {layers}" if layers else "")
        device, threads = self.accelerator.device, torch.get_num_threads()
        where = f"{device}, {threads} threads" if device.type == "cpu" else str(device)
        if self.accelerator.num_processes > 1:
            where += f", {self.accelerator.num_processes} processes"
        return (
            f"{len(images)} images {'x'.join(map(str, images.shape[1:]))}, {self.data.num_classes} classes; "
            f"generator {sizes[0]:,} and discriminator {sizes[1]:,} weights; {fq}; {where}"
        )

    def gauges(self) -> dict[str, float]:
        """Return how much of each dictionary is in use, and the strength of quantization."""
        readings = {}
        for block, layer in zip(self.discriminator.quantizers, self.quantizers, strict=True):
            report = read_dictionary(layer)
            readings[f"usage/block{block}"] = report.usage
            readings[f"perplexity/block{block}"] = report.perplexity
        if self.quantizers and self.config.fq == "straight_through":
            readings["strength/fq"] = self.strength
        return readings

    def columns(self) -> list[str]:
        """Return the columns of ``metrics.csv``."""
        blocks = list(self.discriminator.quantizers)
        names = ["seconds", "loss/d", "loss/g", "score/real", "score/fake"]
        if blocks:
            names += ["commitment/d", "commitment/g"]
            names += [f"{kind}/block{block}" for kind in ("usage", "perplexity") for block in blocks]
            names += ["strength/fq"] * (self.config.fq == "straight_through")
        name = self.data.extractor
        return [*names, f"fid[{name}]/generated", f"fid[{name}]/real floor", "class accuracy/generated"]

    def prepare_evaluation(self) -> None:
        """Load the feature extractor (the first time it is trained) and look at the real images."""
        with self.accelerator.main_process_first():
            extractor = load_extractor(self.data.extractor, self.data)
        self.evaluator = Evaluator(self.data, extractor, self.accelerator)

    def sampler(self) -> Sampler:
        """Return a sampler of the averaged generator with fresh batch-norm statistics."""
        return calibrated_sampler(self.average.model)

    def measure(self) -> Evaluation:
        """Evaluate the averaged generator; the random state of training is not touched."""
        if self.evaluator is None:
            self.prepare_evaluation()
        sampler = self.sampler()
        return self.evaluator(sampler, samples=self.config.eval_samples)  # type: ignore[misc]

    def evaluate(self) -> dict[str, float]:
        """Return :meth:`measure` as columns."""
        result = self.last_evaluation = self.measure()
        return {
            f"fid[{result.extractor}]/generated": result.fid,
            f"fid[{result.extractor}]/real floor": result.floor,
            "class accuracy/generated": result.accuracy,
        }

    def preview(self, path: Path) -> None:
        """Write a PNG of samples, one column a class, the same noise every time."""
        sampler = self.sampler()
        with isolated_rng(EVALUATION_SEED):
            classes = range(self.data.num_classes)
            images = class_columns(sampler, classes, PREVIEW_ROWS)
        save_grid(images, path, columns=len(classes), titles=[str(c) for c in classes])

    def is_finite(self) -> bool:
        """Return whether all weights of both networks are finite."""
        weights = [*self.generator.parameters(), *self.discriminator.parameters()]
        return bool(torch.stack([weight.detach().isfinite().all() for weight in weights]).all())

    def state(self) -> dict[str, Any]:
        """Return networks (with dictionaries), average, optimizers and the place in the data."""
        scaler = self.accelerator.scaler
        return {
            "generator": dict(self.generator.state_dict()),
            "discriminator": dict(self.discriminator.state_dict()),
            "average": self.average.state_dict(),
            "g_optimizer": self.g_optimizer.state_dict(),
            "d_optimizer": self.d_optimizer.state_dict(),
            "order": self.order.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self.generator.load_state_dict(state["generator"])
        self.discriminator.load_state_dict(state["discriminator"])
        self.average.load_state_dict(state["average"])
        load_optimizer(self.g_optimizer, state["g_optimizer"])
        load_optimizer(self.d_optimizer, state["d_optimizer"])
        self.order.load_state_dict(state["order"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])


def calibrated_sampler(generator: nn.Module, *, truncation: float | None = None) -> Sampler:
    """Return a sampler of a copy of the generator with fresh, reproducible batch-norm statistics."""
    sampler = Sampler(copy.deepcopy(generator), truncation=truncation)
    with isolated_rng(EVALUATION_SEED):
        sampler.recalibrate()
    return sampler


def make_accelerator(config: FQGANConfig) -> Any:
    """Return accelerate's view of the devices and processes.

    Raises:
        MissingExtraError: without accelerate.
    """
    accelerate = require("accelerate", purpose="training")
    # Without a GPU it has to be told so, or several processes on CPUs do not find each other.
    cpu = config.device == "cpu" or not torch.accelerator.is_available()
    return accelerate.Accelerator(cpu=cpu, mixed_precision=config.precision)


class TrainResult(NamedTuple):
    """How a run ended.

    run: its folder.
    step: steps done.
    seconds: of training, without evaluation, over all sessions.
    signal: the signal that stopped it, or None.
    evaluation: the final measurement; None when stopped early.
    is_main_process: whether this process is the one that writes and speaks.
    """

    run: Path
    step: int
    seconds: float
    signal: int | None
    evaluation: Evaluation | None
    is_main_process: bool


def train(
    config: FQGANConfig | None = None,
    *,
    out: Path | None = None,
    resume: Path | None = None,
    reporter: Reporter | None = None,
    stop_after: int | None = None,
) -> TrainResult:
    """Train, or go on with a run, and leave a complete run folder.

    Args:
        config: all options; None takes the defaults, or with ``resume`` those of the run.
        out: the new run folder; by default ``runs/fqgan-PRESET-FQ-seedSEED-TIME``.
        resume: the run folder to go on with instead.
        reporter: told about the progress; by default lines in the log.
        stop_after: stop and save after this many steps in all, as Ctrl-C would.

    Raises:
        ConfigError: for options that do not fit, or that changed since the run started.
        RunError: when the run folder cannot be used, a file cannot be written, or training diverges.
        MissingExtraError: without a package of the extra ``train``.
    """
    if resume is not None:
        if out is not None:
            raise ConfigError("a resumed run stays in its folder: give either out or resume")
        config = resumed_config(config, resume)
    config = config or FQGANConfig()
    accelerator = make_accelerator(config)
    reporter = (reporter or LineReporter()) if accelerator.is_main_process else SilentReporter()
    run = _open_run(config, out, resume, accelerator)

    data = load_dataset(config.data)
    gan = FQGAN(config, data, accelerator)
    reporter.note(f"run folder: {run.path}\n{gan.summary()}")
    gan.prepare_evaluation()
    result = run_loop(
        gan,
        accelerator=accelerator,
        run=run,
        metrics=MetricsLog(run.metrics, gan.columns()),
        schedule=Schedule(config.steps, config.log_every, config.checkpoint_every, config.evaluate_every),
        reporter=reporter,
        keep_checkpoints=config.keep_checkpoints,
        resume=resume is not None,
        stop_after=stop_after,
    )
    evaluation = gan.last_evaluation if result.step == config.steps else None
    if accelerator.is_main_process:
        _finish(run, gan, result, evaluation)
    accelerator.wait_for_everyone()
    return TrainResult(
        run.path, result.step, result.seconds, result.signal, evaluation, accelerator.is_main_process
    )


def resumed_config(requested: FQGANConfig | None, run: Path) -> FQGANConfig:
    """Return the options to go on with: those of the run, and of the requested ones what may change.

    Raises:
        ConfigError: naming every option that changed and may not, with its old and new value.
        RunError: when there is no run.
    """
    saved = load_config(FQGANConfig, RunFolder.open(run).config, trainer=TRAINER)
    refused = [c for c in changes(saved, requested or saved) if c.name not in FREE_ON_RESUME]
    if refused:
        listing = "".join(f"\n  {change}" for change in refused)
        raise ConfigError(
            f"these options differ from those that {run} was started with, so it would not be the same run:"
            f"{listing}\nLeave them out to go on with the run, or start a new one. "
            f"May change: {', '.join(sorted(FREE_ON_RESUME))}."
        )
    return requested or saved


def run_name(config: FQGANConfig) -> str:
    """Return the first part of a default folder name."""
    return f"{TRAINER}-{config.preset}-{config.fq}-seed{config.seed}"


def _open_run(config: FQGANConfig, out: Path | None, resume: Path | None, accelerator: Any) -> RunFolder:
    """Make or open the run folder on the main process and write the configuration; agree on it everywhere."""
    from accelerate.utils import broadcast_object_list

    if resume is not None:
        run = RunFolder.open(resume)
    else:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        path = out or Path("runs") / f"{run_name(config)}-{stamp}"
        run = RunFolder(Path(broadcast_object_list([str(path)])[0]))
    if accelerator.is_main_process:
        if resume is not None:
            run.check_writable()
        else:
            run = RunFolder.create(run.path)
        save_config(config, run.config, trainer=TRAINER)
    accelerator.wait_for_everyone()
    return run


def _finish(run: RunFolder, gan: FQGAN, result: LoopResult, evaluation: Evaluation | None) -> None:
    """Write ``samples.png``, ``curves.png`` and, after the last step, ``evaluation.json``."""
    gan.preview(run.samples)
    draw_curves(run)
    if evaluation is not None:
        write_evaluation(run, gan.config, evaluation, step=result.step, seconds=result.seconds)


def draw_curves(run: RunFolder) -> None:
    """Draw ``curves.png`` from ``metrics.csv``."""
    config = load_config(FQGANConfig, run.config, trainer=TRAINER)
    plot_curves(run.metrics, run.curves, title=f"{config.preset}, fq {config.fq}, seed {config.seed}")


def write_evaluation(
    run: RunFolder, config: FQGANConfig, evaluation: Evaluation, *, step: int, seconds: float
) -> None:
    """Write ``evaluation.json``: the figures and what they were measured with."""
    record = {
        "step": step,
        "training_seconds": round(seconds, 1),
        **evaluation._asdict(),
        "fq": config.fq,
        "seed": config.seed,
        "versions": {
            "fq_toolkit": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
    }
    write_atomic(run.evaluation, (json.dumps(record, indent=2) + "\n").encode())


def dry_run(config: FQGANConfig, *, out: Path | None = None, resume: Path | None = None) -> str:
    """Build everything, do one step, write nothing.

    Returns:
        What was built, how long a step takes and what a run would write; empty beside the main process.

    Raises:
        ConfigError: as :func:`train` would.
        RunError: when there is no run to resume, or its checkpoint is damaged.
    """
    if resume is not None:
        config = resumed_config(config, resume)
    accelerator = make_accelerator(config)
    gan = FQGAN(config, load_dataset(config.data), accelerator)
    first = 0
    if resume is not None:
        first, saved = RunFolder.open(resume).checkpoints().load()
        restore(gan, accelerator, saved)
    gan.step(first)  # the first step is slower than the rest
    started = time.monotonic()
    values = {name: float(value) for name, value in gan.step(first + 1).items()}
    seconds = time.monotonic() - started
    if not accelerator.is_main_process:
        return ""
    left = max(0, config.steps - first)
    folder = resume or out or Path("runs") / f"{run_name(config)}-TIME"
    return (
        f"{gan.summary()}\n{format_values(values)}\n"
        f"{seconds:.3f} s a step, about {format_duration(seconds * left)} for {left} steps\n"
        f"Nothing was written. A run writes config.json, metrics.csv, checkpoints/ (the last "
        f"{config.keep_checkpoints}), samples.png, curves.png and evaluation.json into {folder}"
    )
