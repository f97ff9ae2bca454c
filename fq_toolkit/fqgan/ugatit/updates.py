"""The updates of U-GAT-IT: all discriminators, then both generators."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from fq_toolkit.fqgan.data.augmentation import jitter
from fq_toolkit.fqgan.data.pixels import Images
from fq_toolkit.fqgan.data.unpaired import UnpairedDataset
from fq_toolkit.fqgan.gan.networks.quantization import halves_commitment, warmup_strength
from fq_toolkit.fqgan.ugatit.building import build_networks
from fq_toolkit.fqgan.ugatit.config import UGATITConfig
from fq_toolkit.fqgan.ugatit.layers import clip_rho
from fq_toolkit.fqgan.ugatit.losses import (
    adversarial_loss,
    attention_loss,
    critic_loss,
    cycle_loss,
    identity_loss,
)
from fq_toolkit.layers import FeatureQuantizer, commitment_loss, frozen
from fq_toolkit.training.accumulation import update
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.sampling_order import ShuffledIndices
from fq_toolkit.training.seeding import rank_seed, seed_everything

# Images (B, C, H, W) of both domains, A first.
Batch = tuple[Tensor, Tensor]


def learning_rate(config: UGATITConfig, step: int) -> float:
    """Return the learning rate of a step: constant, then falling linearly to 0."""
    start, end = config.decay_steps
    return config.lr * min(1.0, max(0.0, (end - step) / (end - start)))


class UGATITUpdates:
    """Two generators, four discriminators, their optimizers and the data, and how one step changes them.

    A step is one update of all discriminators and one of both generators, on the same images. An update is
    ``accumulate`` forwards and backwards of ``batch_size`` images of each domain and one step of Adam: the
    gradient is that of the whole batch.

    Args:
        config: all options.
        data: both domains.
        accelerator: an ``accelerate.Accelerator``.

    Raises:
        ConfigError: when a domain has fewer images than an update takes.
    """

    def __init__(self, config: UGATITConfig, data: UnpairedDataset, accelerator: Any) -> None:
        self.config, self.data, self.accelerator = config, data, accelerator
        device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
        rows = config.batch_size * config.accumulate
        for domain, images in (("A", data.train_a), ("B", data.train_b)):
            if len(images) < rows * world:
                raise ConfigError(
                    f"domain {domain} has {len(images)} training images; expected at least batch_size "
                    f"{config.batch_size} x accumulate {config.accumulate} for each of {world} process(es)"
                )
        seed_everything(config.seed)  # the same weights everywhere
        self.translators, self.critics = build_networks(config, data.channels)
        self.translators.to(device)
        self.critics.to(device)
        self.quantizers: dict[str, FeatureQuantizer] = {
            f"{domain} conv{layer}": module  # type: ignore[misc]
            for domain, critic in (("A", self.critics.global_a), ("B", self.critics.global_b))
            for layer, module in critic.quantizers.items()
        }
        self.image_orders = [
            # Neighbouring seeds give unrelated orders.
            ShuffledIndices(len(images), rows, seed=2 * config.seed + i, rank=rank, world=world)
            for i, images in enumerate((data.train_a, data.train_b))
        ]
        self.train_a, self.train_b = data.train_a.to(device), data.train_b.to(device)
        self.strength = 0.0
        self.g_optimizer, self.d_optimizer = (
            torch.optim.Adam(
                model.parameters(),
                lr=config.lr,
                betas=config.betas,
                weight_decay=config.weight_decay,
                fused=True,
            )
            for model in (self.translators, self.critics)
        )
        # The wrapped networks are for the pass that is followed by a backward through their own weights.
        self.wrapped_g, self.wrapped_d, self.g_optimizer, self.d_optimizer = accelerator.prepare(
            self.translators, self.critics, self.g_optimizer, self.d_optimizer
        )
        seed_everything(rank_seed(config.seed, rank))  # other crops on every process

    def step(self, step: int) -> dict[str, Tensor]:
        """Update all discriminators once and then all generators once. Waits for nothing on the device."""
        if self.config.fq == "straight_through":
            self.strength = warmup_strength(
                step, warmup=self.config.warmup_steps, strength=self.config.fq_strength
            )
            for layer in self.quantizers.values():
                layer.strength = self.strength
        for optimizer in (self.g_optimizer, self.d_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.config, step)
        batches = self._batches()
        values = self._critic_step(batches)
        values |= self._generator_step(batches)
        clip_rho(self.translators)
        return values

    def _batches(self) -> list[Batch]:
        """Draw the images of every forward of a step."""
        domains = zip((self.train_a, self.train_b), self.image_orders, strict=True)
        drawn = [self._draw(images, order).chunk(self.config.accumulate) for images, order in domains]
        return list(zip(*drawn, strict=True))

    def _draw(self, images: Images, order: ShuffledIndices) -> Tensor:
        return jitter(images[order.next().to(self.accelerator.device)], self.config.image_size)

    def _update(
        self, model: Any, optimizer: Any, losses: Iterator[tuple[Tensor, dict[str, Tensor]]]
    ) -> dict[str, Tensor]:
        """Do one step of an optimizer on ``accumulate`` losses."""
        return update(self.accelerator, model, optimizer, losses, self.config.accumulate)

    def _critic_step(self, batches: list[Batch]) -> dict[str, Tensor]:
        """One update of D: fake and real in one concatenated pass, so that the dictionaries move once."""

        def losses() -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
            for real_a, real_b in batches:
                with self.accelerator.autocast():
                    with torch.no_grad():
                        fake_b = self.translators.a_to_b(real_a).images.to(real_a.dtype)
                        fake_a = self.translators.b_to_a(real_b).images.to(real_b.dtype)
                    judgements = self.wrapped_d(torch.cat([fake_a, real_a]), torch.cat([fake_b, real_b]))
                values = {"loss/d": self.config.adversarial_weight * critic_loss(judgements)}
                loss = values["loss/d"]
                if self.quantizers:
                    values["commitment/d"] = halves_commitment(self.critics)
                    loss = loss + values["commitment/d"]
                yield loss, values

        return self._update(self.wrapped_d, self.d_optimizer, losses())

    def _generator_step(self, batches: list[Batch]) -> dict[str, Tensor]:
        """One update of both generators against discriminators whose weights get no gradient."""
        config = self.config

        def losses() -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
            for real_a, real_b in batches:
                with self.accelerator.autocast():
                    made = self.wrapped_g(real_a, real_b)
                    judgements = self.critics(made.to_a.images, made.to_b.images)
                values = {
                    "loss/g": adversarial_loss(judgements),
                    "translation/cycle": cycle_loss(made, real_a, real_b),
                    "translation/identity": identity_loss(made, real_a, real_b),
                    "translation/attention": attention_loss(made),
                }
                loss = (
                    config.adversarial_weight * values["loss/g"]
                    + config.cycle_weight * values["translation/cycle"]
                    + config.identity_weight * values["translation/identity"]
                    + config.cam_weight * values["translation/attention"]
                )
                if self.quantizers:
                    values["commitment/g"] = commitment_loss(self.critics)
                    if config.fq_in_generator_loss:
                        loss = loss + values["commitment/g"]
                yield loss, values

        self.critics.requires_grad_(False)
        with nullcontext() if config.fq_update_in_generator_step else frozen(self.critics):
            values = self._update(self.wrapped_g, self.g_optimizer, losses())
        self.critics.requires_grad_(True)
        return values
