"""The updates of a GAN: discriminator, generator, and the penalties of every few steps."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from fq_toolkit.fqgan.data.augmentation import random_flip
from fq_toolkit.fqgan.data.datasets import ImageDataset
from fq_toolkit.fqgan.gan.config import FQGANConfig
from fq_toolkit.fqgan.gan.networks.families import FAMILIES, build_networks
from fq_toolkit.fqgan.gan.networks.quantization import (
    halves_commitment,
    quantizer_factory,
    quantizers,
    warmup_strength,
)
from fq_toolkit.fqgan.gan.regularizers import PATH_SHARE, PathLengthPenalty, r1_penalty
from fq_toolkit.layers import commitment_loss, frozen
from fq_toolkit.training.accumulation import update
from fq_toolkit.training.averaging import WeightAverage
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.sampling_order import ShuffledIndices
from fq_toolkit.training.seeding import rank_seed, seed_everything


def training_rows(count: int, config: FQGANConfig) -> Tensor:
    """Return the numbers of the images to train on, int64 (train_images,) or (count,).

    Raises:
        ConfigError: when there are fewer images.
    """
    if config.train_images > count:
        raise ConfigError(f"train_images is {config.train_images}; there are {count} images")
    rows = torch.randperm(count, generator=torch.Generator().manual_seed(config.seed))
    return rows[: config.train_images] if config.train_images else torch.arange(count)


class GANUpdates:
    """Two networks, their optimizers and the data, and how one step changes them. The same for every family.

    A step is ``d_steps`` updates of D and one of G. An update is ``accumulate`` forwards and backwards of
    ``batch_size`` samples each and one step of Adam: the gradient is that of the whole batch.

    Args:
        config: all options.
        data: the real images.
        accelerator: an ``accelerate.Accelerator``.
    """

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
        # The last value of each penalty that is used, so that every step has the same metrics.
        used = {"penalty/r1": config.r1_weight, "penalty/path": config.path_weight}
        self.penalties = {name: torch.zeros((), device=device) for name, weight in used.items() if weight}
        self.real: list[tuple[Tensor, Tensor]] = []  # what D saw last, until the R1 penalty looked at it
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
        seed_everything(rank_seed(config.seed, rank))  # other noise on every process

    def _adam(self, model: torch.nn.Module, lr: float, penalty_every: int) -> Any:
        """Return Adam; with a penalty every n steps there are n + 1 updates where there were n.

        Learning rate and betas are taken to the power of the same time: lr c and beta^c, c = n / (n + 1).

        Source: StyleGAN2, arXiv 1912.04958, appendix B ("lazy regularization").
        """
        share = penalty_every / (penalty_every + 1) if penalty_every else 1.0
        betas = tuple(beta**share for beta in self.config.betas) if penalty_every else self.config.betas
        return torch.optim.Adam(
            model.parameters(), lr=lr * share, betas=betas, eps=self.config.adam_eps, fused=True
        )

    def step(self, step: int) -> dict[str, Tensor]:
        """Update D ``d_steps`` times and G once. Waits for nothing on the device."""
        config = self.config
        if config.fq == "straight_through":
            self.strength = warmup_strength(step, warmup=config.warmup_steps, strength=config.fq_strength)
            for layer in self.quantizers:
                layer.strength = self.strength
        values = {}
        for _ in range(config.d_steps):
            values = self._discriminator_step()
        if config.r1_weight and step % config.r1_every == 0:
            self._r1_step()
        self.real = []
        values |= self._generator_step()
        if config.path_weight and step % config.path_every == 0:
            self._path_step()
        self.average.update()
        return values | self.penalties

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

    def _update(
        self, model: Any, optimizer: Any, losses: Iterator[tuple[Tensor, dict[str, Tensor]]]
    ) -> dict[str, Tensor]:
        """Do one step of an optimizer on ``accumulate`` losses."""
        return update(self.accelerator, model, optimizer, losses, self.config.accumulate)

    def _discriminator_step(self) -> dict[str, Tensor]:
        """One update of D: fake and real in one concatenated pass, so that the dictionaries move once."""
        rows = self.order.next()
        self.real = []

        def losses() -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
            for (z, fake_labels), chosen in zip(self._noise(), self._split(rows), strict=True):
                real, real_labels = self._real(chosen)
                self.real.append((real, real_labels))
                with self.accelerator.autocast():
                    with torch.no_grad():
                        fake = self.generator(z, fake_labels)
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

    def _split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Cut the rows of an update into those of its forwards."""
        return self.rows[rows].to(self.accelerator.device).chunk(self.config.accumulate)

    def _real(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return real images (B, C, H, W), mirrored if that is asked for, and their classes."""
        images = self.images[rows]
        return (random_flip(images) if self.config.flip else images), self.labels[rows]

    def _generator_step(self) -> dict[str, Tensor]:
        """One update of G against a discriminator whose weights get no gradient."""
        config = self.config

        def losses() -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
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

        self.discriminator.requires_grad_(False)
        with nullcontext() if config.fq_update_in_generator_step else frozen(self.discriminator):
            values = self._update(self.wrapped_g, self.g_optimizer, losses())
        self.discriminator.requires_grad_(True)
        return values

    def _r1_step(self) -> None:
        """One update of D on the R1 penalty at the real images of its last update; dictionaries hold still.

        The penalty counts for all steps until the next one.
        """
        weight = self.config.r1_weight / 2 * self.config.r1_every

        def losses() -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
            for images, labels in self.real:
                penalty = r1_penalty(self.wrapped_d, images, labels)
                yield penalty * weight, {"penalty/r1": penalty}

        with frozen(self.discriminator):
            self.penalties |= self._update(self.wrapped_d, self.d_optimizer, losses())

    def _path_step(self) -> None:
        """One update of G on the lengths of its paths; counts for all steps until the next one."""
        weight = self.config.path_weight * self.config.path_every

        def losses() -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
            for z, labels in self._noise(share=PATH_SHARE):
                penalty = self.path_penalty(self.wrapped_g, z, labels)
                yield penalty * weight, {"penalty/path": penalty}

        self.penalties |= self._update(self.wrapped_g, self.g_optimizer, losses())
