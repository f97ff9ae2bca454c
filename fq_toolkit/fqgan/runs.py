"""Finished and unfinished runs: a generator back from its checkpoint, new samples, a new measurement."""

from pathlib import Path
from typing import NamedTuple

from fq_toolkit.fqgan.config import TRAINER, FQGANConfig
from fq_toolkit.fqgan.datasets import ImageDataset, load_dataset
from fq_toolkit.fqgan.evaluation import Evaluation, Evaluator
from fq_toolkit.fqgan.extractors import load_extractor
from fq_toolkit.fqgan.models import build_networks
from fq_toolkit.fqgan.sampling import Sampler, class_columns, save_grid, to_bytes
from fq_toolkit.fqgan.trainer import calibrated_sampler, write_evaluation
from fq_toolkit.training.atomic import explain
from fq_toolkit.training.config import load_config
from fq_toolkit.training.errors import CheckpointError, ConfigError, RunError
from fq_toolkit.training.extras import require
from fq_toolkit.training.run_folder import RunFolder
from fq_toolkit.training.seeding import isolated_rng
from fq_toolkit.training.session import make_accelerator


class TrainedRun(NamedTuple):
    """A run read back, with a sampler of its averaged generator."""

    folder: RunFolder
    config: FQGANConfig
    data: ImageDataset
    step: int
    seconds: float
    sampler: Sampler


def load_run(path: Path, *, step: int | None = None, truncation: float | None = None) -> TrainedRun:
    """Read a run folder.

    Args:
        path: the folder.
        step: which checkpoint; the newest by default.
        truncation: see :class:`fq_toolkit.fqgan.sampling.Sampler`.

    Raises:
        RunError: when it is no run folder.
        CheckpointError: when the checkpoint is missing, damaged or of another model.
        ConfigError: when it is a run of another trainer.
    """
    folder = RunFolder.open(path)
    config = load_config(FQGANConfig, folder.config, trainer=TRAINER)
    if truncation is not None and not truncation > 0:
        raise ConfigError(f"truncation is {truncation}; expected a positive number of standard deviations")
    checkpoint = folder.checkpoints().load(step)
    data = load_dataset(config.data)
    generator = build_networks(config, data, None).generator
    try:
        generator.load_state_dict(checkpoint.state["task"]["average"]["model"])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.step} in {path} does not fit: {error}"
        ) from error
    generator.to(make_accelerator(config).device).eval().requires_grad_(False)
    sampler = calibrated_sampler(generator, truncation=truncation)
    return TrainedRun(folder, config, data, checkpoint.step, checkpoint.state["seconds"], sampler)


def sample_run(
    run: TrainedRun,
    *,
    seed: int,
    rows: int,
    classes: tuple[int, ...],
    out: Path,
    single_images: Path | None = None,
) -> None:
    """Draw new images and write them as one picture, one column a class, and on request as single files.

    Args:
        run: the run.
        seed: of the noise; the same seed draws the same images.
        rows: images per class.
        classes: which classes; empty for all.
        out: the PNG of the grid.
        single_images: folder for one PNG per image, ``class3_0007.png``.

    Raises:
        ConfigError: for a class that does not exist or no rows.
        RunError: when a file cannot be written.
    """
    wrong = [c for c in classes if not 0 <= c < run.data.num_classes]
    if wrong:
        raise ConfigError(
            f"classes {wrong} do not exist; {run.config.data} has 0 to {run.data.num_classes - 1}"
        )
    if rows < 1:
        raise ConfigError(f"rows is {rows}; expected at least 1")
    chosen = list(classes or range(run.data.num_classes))
    with isolated_rng(seed):
        images = class_columns(run.sampler, chosen, rows)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if single_images is not None:
            single_images.mkdir(parents=True, exist_ok=True)
            pictures = require("PIL.Image", purpose="writing images")
            for i, pixels in enumerate(to_bytes(images)):
                name = f"class{chosen[i % len(chosen)]}_{i // len(chosen):04d}.png"
                pictures.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(
                    single_images / name
                )
    except OSError as error:
        raise RunError(f"cannot write images: {explain(error)} ({error.filename})") from error
    save_grid(images, out, columns=len(chosen), titles=[str(c) for c in chosen])


def evaluate_run(run: TrainedRun, *, samples: int | None = None) -> Evaluation:
    """Measure a run again and write ``evaluation.json``.

    Args:
        run: the run.
        samples: generated images; by default as many as the run's options say.
    """
    extractor = load_extractor(run.data.extractor, run.data)
    evaluator = Evaluator(run.data, extractor, make_accelerator(run.config))
    result = evaluator(run.sampler, samples=samples or run.config.eval_samples)
    write_evaluation(run.folder, run.config, result, step=run.step, seconds=run.seconds)
    return result
