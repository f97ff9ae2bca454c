"""The FQ-GAN trainer: two networks in training and how good they are, the same for every family.

`GANTask.step` is one round of the paper's training, arXiv 2004.02088, Algorithm 1. Its losses are in `losses`
and its networks, with the quantizers in them, in `networks`.
"""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fq_toolkit.fqgan.data.augmentation import random_flip
from fq_toolkit.fqgan.data.datasets import ImageDataset, load_dataset, real_images
from fq_toolkit.fqgan.data.pixels import fingerprint
from fq_toolkit.fqgan.gan.config import TRAINER, FQGANConfig, check_warmup
from fq_toolkit.fqgan.gan.evaluation import Evaluation, Evaluator, evaluation_columns
from fq_toolkit.fqgan.gan.losses import PATH_SHARE, PathLengthPenalty, r1_penalty
from fq_toolkit.fqgan.gan.networks.families import FAMILIES, build_networks
from fq_toolkit.fqgan.gan.networks.quantization import (
    dictionary_gauges,
    halves_commitment,
    quantizer_factory,
    quantizers,
    warmup_strength,
)
from fq_toolkit.fqgan.gan.sampling import (
    EVALUATION_SEED,
    Sampler,
    calibrated_sampler,
    class_columns,
    save_grid,
)
from fq_toolkit.fqgan.metrics.extractors import load_extractor
from fq_toolkit.layers import commitment_loss, frozen
from fq_toolkit.training import session
from fq_toolkit.training.accumulation import update
from fq_toolkit.training.averaging import WeightAverage
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.sampling_order import ShuffledIndices
from fq_toolkit.training.seeding import isolated_rng, rank_seed, seed_everything
from fq_toolkit.training.session import Trainer, TrainResult
from fq_toolkit.training.storage.best import Selection
from fq_toolkit.training.storage.evaluation import write_evaluation
from fq_toolkit.training.storage.measured_data import MeasuredSet
from fq_toolkit.training.storage.run_folder import RunFolder
from fq_toolkit.training.task import LoopResult, TrainingTask, count_weights

PREVIEW_ROWS, PREVIEW_CLASSES = 8, 16

# What an update yields for each of its forwards: the loss, and values for metrics.csv.
Losses = Iterator[tuple[Tensor, dict[str, Tensor]]]


def training_rows(count: int, config: FQGANConfig) -> Tensor:
    """Return the numbers of the images to train on, int64 (train_images,) or (count,).

    Raises:
        ConfigError: when there are fewer images.
    """
    if config.train_images > count:
        raise ConfigError(f"train_images is {config.train_images}; there are {count} images")
    rows = torch.randperm(count, generator=torch.Generator().manual_seed(config.seed))
    return rows[: config.train_images] if config.train_images else torch.arange(count)


class GANTask(TrainingTask):
    """A GAN in training: two networks, their optimizers and the data, and how one step changes them.

    A step is ``d_steps`` updates of D and one of G. An update is ``accumulate`` forwards and backwards of
    ``batch_size`` samples each and one step of Adam: the gradient is that of the whole batch.

    Args:
        config: all options.
        data: the real images.
        accelerator: an ``accelerate.Accelerator``.
    """

    trained_on = "the images"
    last_evaluation: Evaluation | None = None

    def __init__(self, config: FQGANConfig, data: ImageDataset, accelerator: Any) -> None:
        self.config, self.data, self.accelerator = config, data, accelerator
        device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
        self.family = FAMILIES[config.family]
        seed_everything(config.seed)  # the same weights everywhere
        self.generator, self.discriminator = build_networks(config, data, quantizer_factory(config))
        self.generator.to(device)
        self.discriminator.to(device)
        self.average = WeightAverage(self.generator, decay=config.ema_decay)
        self.quantizers = quantizers(self.discriminator)
        self.quantized_blocks = list(self.discriminator.quantizers)  # type: ignore[arg-type]
        self.rows = training_rows(len(data.images), config)
        self.order = ShuffledIndices(
            len(self.rows), config.batch_size * config.accumulate, seed=config.seed, rank=rank, world=world
        )
        self.images, self.labels = data.images.to(device), data.labels.to(device)
        self.strength = 0.0
        self.path_penalty = PathLengthPenalty(accelerator)
        # The last value of each penalty in use: every step then has the same metrics.
        used = {"penalty/r1": config.r1_weight, "penalty/path": config.path_weight}
        self.penalties = {name: torch.zeros((), device=device) for name, weight in used.items() if weight}
        self.real: list[tuple[Tensor, Tensor]] = []  # of D's last update, for the R1 penalty
        self.g_optimizer = self._adam(
            self.generator, config.g_lr, config.path_every if config.path_weight else 0
        )
        self.d_optimizer = self._adam(
            self.discriminator, config.d_lr, config.r1_every if config.r1_weight else 0
        )
        # The wrapped networks are for the pass that is followed by a backward through their own weights;
        # under DDP that is where gradients are averaged. Everything else calls the bare ones.
        self.wrapped_g, self.wrapped_d, self.g_optimizer, self.d_optimizer = accelerator.prepare(
            self.generator, self.discriminator, self.g_optimizer, self.d_optimizer
        )
        self.evaluator: Evaluator | None = None
        seed_everything(rank_seed(config.seed, rank))  # other noise on every process

    def _adam(self, model: torch.nn.Module, lr: float, penalty_every: int) -> Any:
        """Return Adam; a penalty every n steps makes n + 1 updates of what were n.

        Learning rate and betas are corrected for that: ``lr c`` and ``beta^c`` with ``c = n / (n + 1)``.

        Source: StyleGAN2, arXiv 1912.04958, appendix B ("lazy regularization").
        """
        share = penalty_every / (penalty_every + 1) if penalty_every else 1.0
        betas = tuple(beta**share for beta in self.config.betas) if penalty_every else self.config.betas
        return torch.optim.Adam(
            model.parameters(), lr=lr * share, betas=betas, eps=self.config.adam_eps, fused=True
        )

    # The training step ------------------------------------------------------------------------------------

    def step(self, step: int) -> dict[str, Tensor]:
        """Update D ``d_steps`` times and G once. Waits for nothing on the device.

        Source: arXiv 2004.02088, Algorithm 1; the penalties are those of StyleGAN2, arXiv 1912.04958.
        """
        config = self.config
        if config.fq == "straight_through":
            self.strength = warmup_strength(step, warmup=config.warmup_steps, strength=config.fq_strength)
            for layer in self.quantizers:
                layer.strength = self.strength
        values = {}
        for _ in range(config.d_steps):
            values = self._discriminator_step()
        # A penalty every few steps, multiplied by as many, costs little and does the same ("lazy").
        if config.r1_weight and step % config.r1_every == 0:
            self._r1_step()
        self.real = []  # lets go of the images before the generator needs the memory
        values |= self._generator_step()
        if config.path_weight and step % config.path_every == 0:
            self._path_step()
        self.average.update()
        return values | self.penalties

    def _discriminator_step(self) -> dict[str, Tensor]:
        """Update D on real and generated images.

        ``L_D = L_GAN(D(x), D(G(z))) + alpha (mean over fakes of L_Q + mean over reals of L_Q)``

        L_GAN is the family's (see `losses`), L_Q the commitment of every quantized layer, whose weight alpha
        it carries itself. Each forward looks codes up (equation 3), pays the distance to them (equation 5)
        and moves the dictionary (equation 6).

        Source: arXiv 2004.02088, equation 7.
        """
        rows = self.order.next()
        self.real = []

        def losses() -> Losses:
            for (z, fake_labels), chosen in zip(self._noise(), self._split(rows), strict=True):
                real, real_labels = self._real(chosen)
                self.real.append((real, real_labels))
                with self.accelerator.autocast():
                    with torch.no_grad():
                        fake = self.generator(z, fake_labels)
                    # Fake and real in one pass, so that the dictionaries move once, and for both.
                    images = torch.cat([fake, real.to(fake.dtype)])
                    scores = self.wrapped_d(images, torch.cat([fake_labels, real_labels]), 2).float()
                fake_scores, real_scores = scores.chunk(2)
                loss = self.family.discriminator_loss(real_scores, fake_scores)
                values = {
                    "loss/d": loss,
                    "score/real": real_scores.mean(),
                    "score/fake": fake_scores.mean(),
                }
                if self.quantizers:
                    values["commitment/d"] = halves_commitment(self.discriminator)
                    loss = loss + values["commitment/d"]
                yield loss, values

        return self._update(self.wrapped_d, self.d_optimizer, losses())

    def _generator_step(self) -> dict[str, Tensor]:
        """Update G against a discriminator whose weights get no gradient.

        ``L_G = L_GAN(D(G(z))) + alpha mean over fakes of L_Q``

        The second term is that of the released code; ``fq_in_generator_loss`` leaves it out.

        Source: arXiv 2004.02088, equation 7, its side of the generator.
        """
        config = self.config

        def losses() -> Losses:
            for z, labels in self._noise():
                with self.accelerator.autocast():
                    scores = self.discriminator(self.wrapped_g(z, labels), labels).float()
                loss = self.family.generator_loss(scores)
                values = {"loss/g": loss}
                if self.quantizers:
                    values["commitment/g"] = commitment_loss(self.discriminator)
                    if config.fq_in_generator_loss:
                        loss = loss + values["commitment/g"]
                yield loss, values

        # No weight of D gets a gradient here, which saves half of its backward; the dictionaries hold still
        # too unless they are to move as in the release.
        self.discriminator.requires_grad_(False)
        with nullcontext() if config.fq_update_in_generator_step else frozen(self.discriminator):
            values = self._update(self.wrapped_g, self.g_optimizer, losses())
        self.discriminator.requires_grad_(True)
        return values

    def _r1_step(self) -> None:
        """Update D on the R1 penalty at the real images of its last update.

        ``n gamma / 2 mean |grad_x D(x)|^2``: it counts for all n steps until the next one. Dictionaries hold
        still, as they have moved for these images already.

        Source: arXiv 1801.04406, equation 9; every n steps: StyleGAN2, arXiv 1912.04958, section 3.1.
        """
        weight = self.config.r1_weight / 2 * self.config.r1_every

        def losses() -> Losses:
            for images, labels in self.real:
                penalty = r1_penalty(self.wrapped_d, images, labels)
                yield penalty * weight, {"penalty/r1": penalty}

        with frozen(self.discriminator):
            self.penalties |= self._update(self.wrapped_d, self.d_optimizer, losses())

    def _path_step(self) -> None:
        """Update G on the lengths of its paths.

        ``n w mean (|J_w^T y| - a)^2``: it counts for all n steps until the next one.

        Source: StyleGAN2, arXiv 1912.04958, equation 4.
        """
        weight = self.config.path_weight * self.config.path_every

        def losses() -> Losses:
            for z, labels in self._noise(share=PATH_SHARE):
                penalty = self.path_penalty(self.wrapped_g, z, labels)
                yield penalty * weight, {"penalty/path": penalty}

        self.penalties |= self._update(self.wrapped_g, self.g_optimizer, losses())

    def _update(self, model: Any, optimizer: Any, losses: Losses) -> dict[str, Tensor]:
        """Do one step of an optimizer on ``accumulate`` losses."""
        return update(self.accelerator, model, optimizer, losses, self.config.accumulate)

    def _noise(self, share: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw noise (B, latent_size) and classes int64 (B,) for every forward of an update.

        Args:
            share: divides the size of the batches.
        """
        count, device = max(1, self.config.batch_size // share), self.accelerator.device
        parts = self.config.accumulate
        z = torch.randn(count * parts, self.config.latent_size, device=device)
        labels = torch.randint(self.data.num_classes, (count * parts,), device=device)
        return zip(z.chunk(parts), labels.chunk(parts), strict=True)

    def _split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Cut the rows of an update into those of its forwards."""
        return self.rows[rows].to(self.accelerator.device).chunk(self.config.accumulate)

    def _real(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return real images (B, C, H, W), mirrored if that is asked for, and their classes."""
        images = self.images[rows]
        return (random_flip(images) if self.config.flip else images), self.labels[rows]

    # What a checkpoint holds ------------------------------------------------------------------------------

    def modules(self) -> dict[str, Any]:
        """Return both networks, dictionaries among them, and the average of the generator."""
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
        """Return the last penalties, and the mean path length that the next ones compare with."""
        return {"penalties": {**self.penalties, "path average": self.path_penalty.average}}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore the penalties."""
        device = self.accelerator.device
        self.penalties = {name: state["penalties"][name].to(device) for name in self.penalties}
        self.path_penalty.average = state["penalties"]["path average"].to(device)

    @cached_property
    def fingerprint(self) -> str:
        """Return a digest of images, labels and names of classes."""
        return fingerprint([self.data.images], self.data.labels, self.data.class_names)

    # What is measured and shown ---------------------------------------------------------------------------

    def summary(self) -> str:
        """Return one line: data, networks, quantized blocks, device."""
        config, images = self.config, self.data.images
        layers = ", ".join(
            f"block {block} ({layer.dim} channels)"
            for block, layer in zip(self.quantized_blocks, self.quantizers, strict=True)
        )
        fq = f"fq {config.fq}" + (f", K {config.num_codes}, after {layers}" if layers else "")
        source = f"{self.data.found}\n" if self.data.found else ""
        weights = count_weights(self.generator), count_weights(self.discriminator)
        return (
            f"{source}{len(images)} images {'x'.join(map(str, images.shape[1:]))}, "
            f"{self.data.num_classes} classes; {config.family} generator {weights[0]:,} and "
            f"discriminator {weights[1]:,} weights; {fq}; {self.where()}"
        )

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

    def gauges(self) -> dict[str, float]:
        """Return how much of each dictionary is in use, and the strength of quantization."""
        named = {
            f"block{block}": layer
            for block, layer in zip(self.quantized_blocks, self.quantizers, strict=True)
        }
        straight = self.config.fq == "straight_through"
        return dictionary_gauges(named, strength=self.strength if straight else None)

    def measured_on(self) -> dict[str, MeasuredSet]:
        """Return the real images."""
        return real_images(self.config.data, self.data)

    def prepare_evaluation(self) -> None:
        """Load the feature extractor (the first time it is trained) and look at the real images."""
        extractor = self.ready_evaluator().extractor
        self.selection = Selection(f"fid[{extractor.name}]/generated", highest=False)

    def ready_evaluator(self) -> Evaluator:
        """Return what measures the generator, made on the first call."""
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
        """Return `measure` as columns."""
        self.last_evaluation = self.measure()
        return self.last_evaluation.columns()

    def finish(self, run: RunFolder, result: LoopResult, *, complete: bool) -> None:
        """Write ``samples.png`` and, after the last step, ``evaluation.json``."""
        sampler = self.sampler()
        classes = range(min(self.data.num_classes, PREVIEW_CLASSES))
        with isolated_rng(EVALUATION_SEED):  # the same noise every time
            images = class_columns(sampler, classes, PREVIEW_ROWS)
        save_grid(images, run.samples, columns=len(classes), titles=[str(c) for c in classes])
        if complete and self.last_evaluation is not None:
            write_evaluation(
                run.evaluation,
                self.last_evaluation._asdict() | {"fq": self.config.fq, "checkpoint": "last"},
                step=result.step,
                seconds=result.seconds,
                measured_on=self.measured_on(),
                seed=self.config.seed,
            )


def build_gan(config: FQGANConfig, accelerator: Any) -> GANTask:
    """Load the data and build the task.

    Raises:
        ConfigError: when the options name no images, images that do not fit, or a warm-up without an end.
    """
    check_warmup(config)
    if not config.data:
        raise ConfigError(f"the preset {config.preset!r} needs images: give --data PATH")
    data = load_dataset(config.data, **config.reading())
    return GANTask(config, data, accelerator)


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


def train(config: FQGANConfig | None = None, **options: Any) -> TrainResult:
    """Train a GAN, or go on with a run; options as of `fq_toolkit.training.session.train`."""
    return session.train(GAN_TRAINER, config, **options)
