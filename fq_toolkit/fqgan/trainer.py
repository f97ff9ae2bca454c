"""The FQ-GAN trainer: one class-conditional GAN step, its state, its evaluation, and the run around it."""

import copy
import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fq_toolkit.fqgan.config import TRAINER, FQGANConfig
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
from fq_toolkit.training import session
from fq_toolkit.training.atomic import write_atomic
from fq_toolkit.training.averaging import WeightAverage
from fq_toolkit.training.loop import LoopResult
from fq_toolkit.training.optimizer_state import load_optimizer
from fq_toolkit.training.progress import Reporter
from fq_toolkit.training.run_folder import RunFolder
from fq_toolkit.training.sampling_order import ShuffledIndices
from fq_toolkit.training.seeding import isolated_rng, rank_seed, seed_everything
from fq_toolkit.training.session import Trainer, TrainResult

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

    def finish(self, run: RunFolder, result: LoopResult, *, complete: bool) -> None:
        """Write ``samples.png`` and, after the last step, ``evaluation.json``."""
        self.preview(run.samples)
        if complete and self.last_evaluation is not None:
            write_evaluation(run, self.config, self.last_evaluation, step=result.step, seconds=result.seconds)


def calibrated_sampler(generator: nn.Module, *, truncation: float | None = None) -> Sampler:
    """Return a sampler of a copy of the generator with fresh, reproducible batch-norm statistics."""
    sampler = Sampler(copy.deepcopy(generator), truncation=truncation)
    with isolated_rng(EVALUATION_SEED):
        sampler.recalibrate()
    return sampler


def build_gan(config: FQGANConfig, accelerator: Any) -> FQGAN:
    """Load the data and build the task."""
    return FQGAN(config, load_dataset(config.data), accelerator)


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
    run: RunFolder, config: FQGANConfig, evaluation: Evaluation, *, step: int, seconds: float
) -> None:
    """Write ``evaluation.json``: the figures and what they were measured with."""
    record = {
        "step": step,
        "training_seconds": round(seconds, 1),
        **evaluation._asdict(),
        "fq": config.fq,
        "seed": config.seed,
        **session.provenance(),
    }
    write_atomic(run.evaluation, (json.dumps(record, indent=2) + "\n").encode())
