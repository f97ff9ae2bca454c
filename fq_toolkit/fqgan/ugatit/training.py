"""The U-GAT-IT trainer: two translators in training and how good their translations are.

`UGATITTask.step` is one round of training; its losses are in `losses`, its networks in `networks`. Papers:
arXiv 1907.10830, and arXiv 2004.02088 for the quantized discriminators.
"""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fq_toolkit.fqgan.data.augmentation import jitter
from fq_toolkit.fqgan.data.pixels import Images, fingerprint
from fq_toolkit.fqgan.data.unpaired import UnpairedDataset, load_unpaired, translated_images
from fq_toolkit.fqgan.gan.config import check_warmup
from fq_toolkit.fqgan.gan.networks.quantization import (
    dictionary_gauges,
    halves_commitment,
    warmup_strength,
)
from fq_toolkit.fqgan.gan.sampling import save_grid
from fq_toolkit.fqgan.ugatit.config import TRAINER, UGATITConfig
from fq_toolkit.fqgan.ugatit.evaluation import (
    TranslationEvaluation,
    TranslationEvaluator,
    mean_distance,
    translation_columns,
)
from fq_toolkit.fqgan.ugatit.layers import clip_rho
from fq_toolkit.fqgan.ugatit.losses import (
    adversarial_loss,
    attention_loss,
    critic_loss,
    cycle_loss,
    identity_loss,
)
from fq_toolkit.fqgan.ugatit.networks import build_networks
from fq_toolkit.fqgan.ugatit.translate import PREVIEW_TITLES, preview_images
from fq_toolkit.layers import FeatureQuantizer, commitment_loss, frozen
from fq_toolkit.training.accumulation import update
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.sampling_order import ShuffledIndices
from fq_toolkit.training.seeding import rank_seed, seed_everything
from fq_toolkit.training.session import Trainer
from fq_toolkit.training.storage.best import Selection
from fq_toolkit.training.storage.evaluation import write_evaluation
from fq_toolkit.training.storage.measured_data import MeasuredSet
from fq_toolkit.training.storage.run_folder import RunFolder
from fq_toolkit.training.task import LoopResult, TrainingTask, count_weights

# Images (B, C, H, W) of both domains, A first.
Batch = tuple[Tensor, Tensor]
# What an update yields for each of its forwards: the loss, and values for metrics.csv.
Losses = Iterator[tuple[Tensor, dict[str, Tensor]]]


def learning_rate(config: UGATITConfig, step: int) -> float:
    """Return the learning rate of a step: constant, then linear decay to 0."""
    start, end = config.decay_steps
    return config.lr * min(1.0, max(0.0, (end - step) / (end - start)))


class UGATITTask(TrainingTask):
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

    trained_on = "the images"
    last_evaluation: TranslationEvaluation | None = None

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
        self.evaluator: TranslationEvaluator | None = None
        seed_everything(rank_seed(config.seed, rank))  # other crops on every process

    # The training step ------------------------------------------------------------------------------------

    def step(self, step: int) -> dict[str, Tensor]:
        """Update all discriminators once and then all generators once. Waits for nothing on the device."""
        config = self.config
        if config.fq == "straight_through":
            self.strength = warmup_strength(step, warmup=config.warmup_steps, strength=config.fq_strength)
            for layer in self.quantizers.values():
                layer.strength = self.strength
        for optimizer in (self.g_optimizer, self.d_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step)
        batches = self._batches()
        values = self._critic_step(batches)
        values |= self._generator_step(batches)
        clip_rho(self.translators)  # Adam may have moved it out of [0, 1]
        return values

    def _critic_step(self, batches: list[Batch]) -> dict[str, Tensor]:
        """Update all discriminators.

        ``L_D = l1 (L_lsgan + L_cam^D) + alpha (mean over fakes of L_Q + mean over reals of L_Q)``

        Source: U-GAT-IT, arXiv 1907.10830, equations 2 and 6; L_Q: arXiv 2004.02088, equations 5 and 7.
        """

        def losses() -> Losses:
            for real_a, real_b in batches:
                with self.accelerator.autocast():
                    with torch.no_grad():
                        fake_b = self.translators.a_to_b(real_a).images.to(real_a.dtype)
                        fake_a = self.translators.b_to_a(real_b).images.to(real_b.dtype)
                    # Fake and real in one pass, so that the dictionaries move once, and for both.
                    judgements = self.wrapped_d(torch.cat([fake_a, real_a]), torch.cat([fake_b, real_b]))
                values = {"loss/d": self.config.adversarial_weight * critic_loss(judgements)}
                loss = values["loss/d"]
                if self.quantizers:
                    values["commitment/d"] = halves_commitment(self.critics)
                    loss = loss + values["commitment/d"]
                yield loss, values

        return self._update(self.wrapped_d, self.d_optimizer, losses())

    def _generator_step(self, batches: list[Batch]) -> dict[str, Tensor]:
        """Update both generators against discriminators whose weights get no gradient.

        ``L_G = l1 L_lsgan + l2 L_cycle + l3 L_identity + l4 L_cam + alpha mean over fakes of L_Q``

        Source: U-GAT-IT, arXiv 1907.10830, equation 7; L_Q: arXiv 2004.02088, equations 5 and 7.
        """
        config = self.config

        def losses() -> Losses:
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

        # No weight of a discriminator gets a gradient here, which saves half of their backward.
        self.critics.requires_grad_(False)
        with nullcontext() if config.fq_update_in_generator_step else frozen(self.critics):
            values = self._update(self.wrapped_g, self.g_optimizer, losses())
        self.critics.requires_grad_(True)
        return values

    def _update(self, model: Any, optimizer: Any, losses: Losses) -> dict[str, Tensor]:
        """Do one step of an optimizer on ``accumulate`` losses."""
        return update(self.accelerator, model, optimizer, losses, self.config.accumulate)

    def _batches(self) -> list[Batch]:
        """Draw the images of every forward of a step."""
        domains = zip((self.train_a, self.train_b), self.image_orders, strict=True)
        drawn = [self._draw(images, order).chunk(self.config.accumulate) for images, order in domains]
        return list(zip(*drawn, strict=True))

    def _draw(self, images: Images, order: ShuffledIndices) -> Tensor:
        return jitter(images[order.next().to(self.accelerator.device)], self.config.image_size)

    # What a checkpoint holds ------------------------------------------------------------------------------

    def modules(self) -> dict[str, Any]:
        """Return generators and discriminators, dictionaries among them."""
        return {"translators": self.translators, "critics": self.critics}

    def optimizers(self) -> dict[str, Any]:
        """Return both optimizers."""
        return {"g_optimizer": self.g_optimizer, "d_optimizer": self.d_optimizer}

    def orders(self) -> dict[str, Any]:
        """Return nothing: the two orders are one list of the state, see `extra_state`."""
        return {}

    def extra_state(self) -> dict[str, Any]:
        """Return the orders of both domains."""
        return {"orders": [order.state_dict() for order in self.image_orders]}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore the orders."""
        for order, saved in zip(self.image_orders, state["orders"], strict=True):
            order.load_state_dict(saved)

    @cached_property
    def fingerprint(self) -> str:
        """Return a digest of the training images."""
        return fingerprint([self.data.train_a, self.data.train_b])

    # What is measured and shown ---------------------------------------------------------------------------

    def summary(self) -> str:
        """Return one line: data, networks, quantized convolutions, device."""
        config = self.config
        networks = (self.translators.a_to_b, self.critics.global_a, self.critics.local_a)
        generator, global_critic, local_critic = map(count_weights, networks)
        layers = ", ".join(f"{name} (K {layer.num_codes})" for name, layer in self.quantizers.items())
        fq = f"fq {config.fq}" + (f" after {layers}" if layers else "")
        size = config.image_size
        return (
            f"{self.data.found}; {self.data.channels}x{size}x{size}; a generator {generator:,}, "
            f"a global discriminator {global_critic:,}, a local one {local_critic:,} weights; {fq}; "
            f"{self.where()}"
        )

    def columns(self) -> list[str]:
        """Return the columns of ``metrics.csv``."""
        names = ["seconds", "loss/d", "loss/g"]
        names += [f"translation/{part}" for part in ("cycle", "identity", "attention")]
        if self.quantizers:
            names += ["commitment/d", "commitment/g"]
            names += [f"{kind}/{layer}" for kind in ("usage", "perplexity") for layer in self.quantizers]
            names += ["strength/fq"] * (self.config.fq == "straight_through")
        return names + translation_columns(self.ready_evaluator().extractor.name)

    def gauges(self) -> dict[str, float]:
        """Return how much of each dictionary is in use, and the strength of quantization."""
        straight = self.config.fq == "straight_through"
        return dictionary_gauges(self.quantizers, strength=self.strength if straight else None)

    def measured_on(self) -> dict[str, MeasuredSet]:
        """Return the test images of both domains."""
        return translated_images(self.config.data, self.data)

    def prepare_evaluation(self) -> None:
        """Look at the real images of both domains."""
        extractor = self.ready_evaluator().extractor
        self.selection = Selection(mean_distance(extractor.name), highest=False)

    def ready_evaluator(self) -> TranslationEvaluator:
        """Return what measures the translators, made on the first call."""
        if self.evaluator is None:
            self.evaluator = TranslationEvaluator(self.data, self.config.extractor)
        return self.evaluator

    def evaluate(self) -> dict[str, float]:
        """Translate all test images and measure them; the same on every process."""
        self.last_evaluation = self.ready_evaluator()(self.translators, self.accelerator.device)
        return self.last_evaluation.columns()

    def finish(self, run: RunFolder, result: LoopResult, *, complete: bool) -> None:
        """Write ``samples.png`` and, after the last step, ``evaluation.json``.

        The picture shows test images: where the generator looks, the translation, and the way back.
        """
        images = preview_images(self.translators, self.data, self.accelerator.device)
        save_grid(images, run.samples, columns=len(PREVIEW_TITLES), titles=list(PREVIEW_TITLES))
        if complete and self.last_evaluation is not None:
            write_evaluation(
                run.evaluation,
                self.last_evaluation.record() | {"fq": self.config.fq, "checkpoint": "last"},
                step=result.step,
                seconds=result.seconds,
                measured_on=self.measured_on(),
                seed=self.config.seed,
            )


def build_task(config: UGATITConfig, accelerator: Any) -> UGATITTask:
    """Load the data and build the task.

    Raises:
        ConfigError: for images that do not fit, or a warm-up without an end.
    """
    check_warmup(config)
    return UGATITTask(config, load_unpaired(config.data, **config.reading()), accelerator)


def run_name(config: UGATITConfig) -> str:
    """Return the first part of a default folder name."""
    return f"{TRAINER}-{config.preset}-{config.fq}-seed{config.seed}"


UGATIT_TRAINER = Trainer(
    name=TRAINER,
    config_class=UGATITConfig,
    build=build_task,
    run_name=run_name,
    artifacts=("samples.png", "curves.png", "metrics.csv"),
)
