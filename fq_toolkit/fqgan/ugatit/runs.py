"""Finished and unfinished runs of U-GAT-IT: generators back from a checkpoint, and a new measurement."""

from pathlib import Path
from typing import NamedTuple

import torch

from fq_toolkit.fqgan.data.unpaired import load_unpaired, translated_images
from fq_toolkit.fqgan.ugatit.config import TRAINER, UGATITConfig
from fq_toolkit.fqgan.ugatit.evaluation import TranslationEvaluation, TranslationEvaluator
from fq_toolkit.fqgan.ugatit.networks import Translators, build_networks
from fq_toolkit.training.runs import open_saved
from fq_toolkit.training.session import make_accelerator
from fq_toolkit.training.storage.best import Which
from fq_toolkit.training.storage.evaluation import write_evaluation
from fq_toolkit.training.storage.measured_data import check_measured
from fq_toolkit.training.storage.run_folder import RunFolder


class TranslatorRun(NamedTuple):
    """A run read back: its generators in evaluation mode, on ``device``."""

    folder: RunFolder
    config: UGATITConfig
    translators: Translators
    checkpoint: Which
    step: int
    seconds: float
    device: torch.device


def load_translators(path: Path, *, checkpoint: Which = "last") -> TranslatorRun:
    """Read a run folder of U-GAT-IT. Its data is not needed.

    Args:
        path: the folder.
        checkpoint: ``"best"``, ``"last"`` or a step.

    Raises:
        RunError: when it is no run folder.
        CheckpointError: when the checkpoint is missing, damaged or of another model.
        ConfigError: when it is a run of another trainer.
    """
    saved = open_saved(UGATITConfig, TRAINER, path, checkpoint=checkpoint)
    with saved.fitting():
        weights = saved.state["translators"]
        channels = weights["a_to_b.down.1.weight"].shape[1]
        translators = build_networks(saved.config, channels)[0]
        translators.load_state_dict(weights)
    device = make_accelerator(saved.config).device
    translators.to(device).eval().requires_grad_(False)
    return TranslatorRun(
        saved.folder, saved.config, translators, checkpoint, saved.step, saved.seconds, device
    )


def evaluate_translators(run: TranslatorRun, *, extractor: str | None = None) -> TranslationEvaluation:
    """Measure a run again and write ``evaluation.json``.

    Args:
        run: the run.
        extractor: see `load_extractor`; by default that of the run.

    Raises:
        CheckpointError: when the test images are not those that the run was measured on.
        ConfigError: when its data are not where they were.
    """
    config = run.config
    data = load_unpaired(config.data, **config.reading())
    measured_on = translated_images(config.data, data)
    check_measured(run.folder.checkpoints(), run.step, measured_on)
    evaluation = TranslationEvaluator(data, extractor or config.extractor)(run.translators, run.device)
    write_evaluation(
        run.folder.evaluation,
        evaluation.record() | {"fq": config.fq, "checkpoint": run.checkpoint},
        step=run.step,
        seconds=run.seconds,
        measured_on=measured_on,
        seed=config.seed,
    )
    return evaluation
