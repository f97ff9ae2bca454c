"""The U-GAT-IT trainer: two translators in training, their state and their evaluation."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from fq_toolkit.fqgan.data.data_identity import fingerprint, translated_images
from fq_toolkit.fqgan.data.unpaired import UnpairedDataset, load_unpaired
from fq_toolkit.fqgan.gan.config import check_warmup
from fq_toolkit.fqgan.gan.networks.quantization import read_dictionary
from fq_toolkit.fqgan.gan.sampling import save_grid
from fq_toolkit.fqgan.ugatit.config import TRAINER, UGATITConfig
from fq_toolkit.fqgan.ugatit.evaluation import DIRECTIONS, TranslationEvaluation, TranslationEvaluator
from fq_toolkit.fqgan.ugatit.translate import PREVIEW_TITLES, preview_images
from fq_toolkit.fqgan.ugatit.updates import UGATITUpdates
from fq_toolkit.training.session import Trainer
from fq_toolkit.training.storage.atomic import write_atomic
from fq_toolkit.training.storage.evaluation import provenance
from fq_toolkit.training.storage.measured_data import KEY, MeasuredSet, set_records
from fq_toolkit.training.storage.run_folder import RunFolder
from fq_toolkit.training.task import LoopResult, TrainingTask


class UGATIT(UGATITUpdates, TrainingTask):
    """Two translators in training: the task that :func:`fq_toolkit.training.loop.run_loop` drives.

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
        super().__init__(config, data, accelerator)
        self.evaluator: TranslationEvaluator | None = None

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

    def measured_on(self) -> dict[str, MeasuredSet]:
        """Return the test images of both domains."""
        return translated_images(self.config.data, self.data)

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

    def modules(self) -> dict[str, Any]:
        """Return generators and discriminators (with dictionaries)."""
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


def write_evaluation(
    run: RunFolder,
    config: UGATITConfig,
    evaluation: TranslationEvaluation,
    *,
    step: int,
    seconds: float,
    measured_on: Mapping[str, MeasuredSet],
) -> None:
    """Write ``evaluation.json``: the figures of both directions, with what they can be read with."""
    record = {
        "step": step,
        "train_seconds": round(seconds, 1),
        **{name: figures._asdict() for name, figures in zip(DIRECTIONS, evaluation, strict=True)},
        KEY: set_records(measured_on),
        "fq": config.fq,
        "seed": config.seed,
        **provenance(),
    }
    write_atomic(run.evaluation, (json.dumps(record, indent=2) + "\n").encode())


def build_task(config: UGATITConfig, accelerator: Any) -> UGATIT:
    """Load the data and build the task.

    Raises:
        ConfigError: for images that do not fit, or a warm-up without an end.
    """
    check_warmup(config)
    return UGATIT(config, load_unpaired(config.data, **config.reading()), accelerator)


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
