"""The U-GAT-IT trainer: one step of image translation between two domains, its state and its evaluation."""

import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fq_toolkit.fqgan.augmentation import jitter
from fq_toolkit.fqgan.pixels import Images
from fq_toolkit.fqgan.quantization import halves_commitment, read_dictionary
from fq_toolkit.fqgan.sampling import save_grid
from fq_toolkit.fqgan.translate import PREVIEW_TITLES, preview_images
from fq_toolkit.fqgan.ugatit_building import build_networks
from fq_toolkit.fqgan.ugatit_config import TRAINER, UGATITConfig
from fq_toolkit.fqgan.ugatit_evaluation import DIRECTIONS, TranslationEvaluation, TranslationEvaluator
from fq_toolkit.fqgan.ugatit_layers import clip_rho
from fq_toolkit.fqgan.ugatit_losses import (
    adversarial_loss,
    attention_loss,
    critic_loss,
    cycle_loss,
    identity_loss,
)
from fq_toolkit.fqgan.unpaired import UnpairedDataset, load_unpaired
from fq_toolkit.layers import FeatureQuantizer, commitment_loss, frozen
from fq_toolkit.training import session
from fq_toolkit.training.atomic import write_atomic
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.loop import LoopResult
from fq_toolkit.training.optimizer_state import load_optimizer
from fq_toolkit.training.run_folder import RunFolder
from fq_toolkit.training.sampling_order import ShuffledIndices
from fq_toolkit.training.seeding import rank_seed, seed_everything
from fq_toolkit.training.session import Trainer


def learning_rate(config: UGATITConfig, step: int) -> float:
    """Return the learning rate of a step: constant, then falling linearly to 0."""
    left = (config.lr_decay_end - step) / (config.lr_decay_end - config.lr_decay_start)
    return config.lr * min(1.0, max(0.0, left))


class UGATIT:
    """Two translators in training: the task that :func:`fq_toolkit.training.loop.run_loop` drives.

    Args:
        config: all options.
        data: both domains.
        accelerator: an ``accelerate.Accelerator``.

    Raises:
        ConfigError: when a domain has fewer images than a batch.
    """

    def __init__(self, config: UGATITConfig, data: UnpairedDataset, accelerator: Any) -> None:
        self.config, self.data, self.accelerator = config, data, accelerator
        device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
        fewest = min(len(data.train_a), len(data.train_b))
        if fewest < config.batch_size * world:
            raise ConfigError(
                f"a domain has {fewest} training images; expected at least batch_size {config.batch_size} "
                f"for each of {world} process(es)"
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
        self.orders = [
            # Neighbouring seeds give unrelated orders.
            ShuffledIndices(len(images), config.batch_size, seed=2 * config.seed + i, rank=rank, world=world)
            for i, images in enumerate((data.train_a, data.train_b))
        ]
        self.train_a, self.train_b = data.train_a.to(device), data.train_b.to(device)
        self.evaluator: TranslationEvaluator | None = None
        self.last_evaluation: TranslationEvaluation | None = None
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
            self.strength = min(1.0, step / max(1, self.config.fq_warmup))
            for layer in self.quantizers.values():
                layer.strength = self.strength
        for optimizer in (self.g_optimizer, self.d_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.config, step)
        real_a, real_b = (
            self._batch(images, order)
            for images, order in zip((self.train_a, self.train_b), self.orders, strict=True)
        )
        values = self._critic_step(real_a, real_b)
        values |= self._generator_step(real_a, real_b)
        clip_rho(self.translators)
        return {name: value.detach() for name, value in values.items()}

    def _batch(self, images: Images, order: ShuffledIndices) -> Tensor:
        rows = order.next().to(self.accelerator.device)
        return jitter(images[rows], self.config.image_size)

    def _critic_step(self, real_a: Tensor, real_b: Tensor) -> dict[str, Tensor]:
        """One update of D: fake and real in one concatenated pass, so that the dictionaries move once."""
        self.d_optimizer.zero_grad()
        with self.accelerator.autocast():
            with torch.no_grad():
                fake_b = self.translators.a_to_b(real_a).images.float()
                fake_a = self.translators.b_to_a(real_b).images.float()
            judgements = self.wrapped_d(torch.cat([fake_a, real_a]), torch.cat([fake_b, real_b]))
        values = {"loss/d": self.config.adversarial_weight * critic_loss(judgements)}
        loss = values["loss/d"]
        if self.quantizers:
            values["commitment/d"] = halves_commitment(self.critics)
            loss = loss + values["commitment/d"]
        self.accelerator.backward(loss)
        self.d_optimizer.step()
        return values

    def _generator_step(self, real_a: Tensor, real_b: Tensor) -> dict[str, Tensor]:
        """One update of both generators against discriminators whose weights get no gradient."""
        config = self.config
        self.g_optimizer.zero_grad()
        self.critics.requires_grad_(False)
        holds_still = not config.fq_update_in_generator_step
        with frozen(self.critics) if holds_still else nullcontext():
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
        self.accelerator.backward(loss)
        self.critics.requires_grad_(True)
        self.g_optimizer.step()
        return values

    def summary(self) -> str:
        """Return one line: data, networks, quantized convolutions, device."""
        config = self.config
        networks = (self.translators.a_to_b, self.critics.global_a, self.critics.local_a)
        sizes = [sum(weight.numel() for weight in network.parameters()) for network in networks]
        layers = ", ".join(f"{name} (K {layer.num_codes})" for name, layer in self.quantizers.items())
        fq = f"fq {config.fq}" + (f" after {layers}" if layers else "")
        size, device = config.image_size, self.accelerator.device
        return (
            f"{self.data.found}; {self.data.channels}x{size}x{size}; a generator {sizes[0]:,}, "
            f"a global discriminator {sizes[1]:,}, a local one {sizes[2]:,} weights; {fq}; "
            f"{device}, {self.accelerator.num_processes} process(es)"
        )

    def gauges(self) -> dict[str, float]:
        """Return how much of each dictionary is in use, and the strength of quantization."""
        readings = {}
        for name, layer in self.quantizers.items():
            report = read_dictionary(layer)
            readings[f"usage/{name}"] = report.usage
            readings[f"perplexity/{name}"] = report.perplexity
        if self.quantizers and self.config.fq == "straight_through":
            readings["strength/fq"] = self.strength
        return readings

    def columns(self) -> list[str]:
        """Return the columns of ``metrics.csv``."""
        names = ["seconds", "loss/d", "loss/g"]
        names += [f"translation/{part}" for part in ("cycle", "identity", "attention")]
        if self.quantizers:
            names += ["commitment/d", "commitment/g"]
            names += [f"{kind}/{layer}" for kind in ("usage", "perplexity") for layer in self.quantizers]
            names += ["strength/fq"] * (self.config.fq == "straight_through")
        ruler = self._evaluator().extractor.name
        return names + [
            f"{figure}[{ruler}]/{curve}"
            for figure in ("kid", "fid")
            for direction in DIRECTIONS
            for curve in (direction, f"{direction} floor")
        ]

    def _evaluator(self) -> TranslationEvaluator:
        if self.evaluator is None:
            self.evaluator = TranslationEvaluator(self.data, self.config.extractor)
        return self.evaluator

    def prepare_evaluation(self) -> None:
        """Look at the real images of both domains."""
        self._evaluator()

    def evaluate(self) -> dict[str, float]:
        """Translate all test images and measure them; the same on every process."""
        self.last_evaluation = self._evaluator()(self.translators, self.accelerator.device)
        return self.last_evaluation.columns()

    def preview(self, path: Path) -> None:
        """Write a PNG of test images: where the generator looks, the translation, and the way back."""
        save_grid(
            preview_images(self.translators, self.data, self.accelerator.device),
            *(path,),
            columns=len(PREVIEW_TITLES),
            titles=list(PREVIEW_TITLES),
        )

    def is_finite(self) -> bool:
        """Return whether all weights of all networks are finite."""
        weights = [*self.translators.parameters(), *self.critics.parameters()]
        return bool(torch.stack([weight.detach().isfinite().all() for weight in weights]).all())

    def state(self) -> dict[str, Any]:
        """Return networks (with dictionaries), optimizers and the places in the data."""
        scaler = self.accelerator.scaler
        return {
            "translators": dict(self.translators.state_dict()),
            "critics": dict(self.critics.state_dict()),
            "g_optimizer": self.g_optimizer.state_dict(),
            "d_optimizer": self.d_optimizer.state_dict(),
            "orders": [order.state_dict() for order in self.orders],
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self.translators.load_state_dict(state["translators"])
        self.critics.load_state_dict(state["critics"])
        load_optimizer(self.g_optimizer, state["g_optimizer"])
        load_optimizer(self.d_optimizer, state["d_optimizer"])
        for order, place in zip(self.orders, state["orders"], strict=True):
            order.load_state_dict(place)
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def finish(self, run: RunFolder, result: LoopResult, *, complete: bool) -> None:
        """Write ``samples.png`` and, after the last step, ``evaluation.json``."""
        self.preview(run.samples)
        if complete and self.last_evaluation is not None:
            write_evaluation(run, self.config, self.last_evaluation, step=result.step, seconds=result.seconds)


def write_evaluation(
    run: RunFolder, config: UGATITConfig, evaluation: TranslationEvaluation, *, step: int, seconds: float
) -> None:
    """Write ``evaluation.json``: the figures of both directions, with what they can be read with."""
    record = {
        "step": step,
        "train_seconds": round(seconds, 1),
        **{name: figures._asdict() for name, figures in zip(DIRECTIONS, evaluation, strict=True)},
        "fq": config.fq,
        "seed": config.seed,
        **session.provenance(),
    }
    write_atomic(run.evaluation, (json.dumps(record, indent=2) + "\n").encode())


def build_task(config: UGATITConfig, accelerator: Any) -> UGATIT:
    """Load the data and build the task."""
    return UGATIT(config, load_unpaired(config.data, size=config.image_size), accelerator)


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
