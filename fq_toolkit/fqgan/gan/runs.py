"""Finished and unfinished runs: networks from a checkpoint, new samples, a new measurement."""

import csv
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from fq_toolkit.fqgan.data.datasets import ImageDataset, load_dataset, real_images
from fq_toolkit.fqgan.gan.config import TRAINER, FQGANConfig
from fq_toolkit.fqgan.gan.evaluation import Evaluation, Evaluator
from fq_toolkit.fqgan.gan.networks.families import build_networks
from fq_toolkit.fqgan.gan.networks.quantization import quantizer_factory
from fq_toolkit.fqgan.gan.sampling import (
    Sampler,
    calibrated_sampler,
    class_columns,
    interpolation_strips,
    make_folder,
    save_grid,
    save_image,
)
from fq_toolkit.fqgan.metrics.extractors import load_extractor
from fq_toolkit.fqgan.metrics.stored_statistics import load_statistics, save_statistics
from fq_toolkit.training.atomic import write_atomic
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.runs import open_saved
from fq_toolkit.training.seeding import isolated_rng
from fq_toolkit.training.session import make_accelerator
from fq_toolkit.training.storage.best import Which
from fq_toolkit.training.storage.evaluation import write_evaluation
from fq_toolkit.training.storage.measured_data import MeasuredSet, check_measured
from fq_toolkit.training.storage.run_folder import RunFolder


class TrainedRun(NamedTuple):
    """A run read back: its averaged generator as saved, and its discriminator with the dictionaries.

    checkpoint: which one was asked for.
    step: of that checkpoint.
    """

    folder: RunFolder
    config: FQGANConfig
    data: ImageDataset
    checkpoint: Which
    step: int
    seconds: float
    generator: nn.Module
    discriminator: nn.Module

    def sampler(self, *, truncation: float | None = None) -> Sampler:
        """Return a sampler with fresh batch-norm statistics.

        Args:
            truncation: see `Sampler`.

        Raises:
            ConfigError: when truncation is not positive.
        """
        if truncation is not None and not truncation > 0:
            raise ConfigError(f"truncation is {truncation}; expected a positive number")
        return calibrated_sampler(self.generator, truncation=truncation)


def load_run(path: Path, *, checkpoint: Which = "last") -> TrainedRun:
    """Read a run folder.

    Args:
        path: the folder.
        checkpoint: ``"best"``, ``"last"`` or a step.

    Raises:
        RunError: when it is no run folder.
        CheckpointError: when the checkpoint is missing, damaged or of another model.
        ConfigError: when it is a run of another trainer, or its data is not where it was.
    """
    saved = open_saved(FQGANConfig, TRAINER, path, checkpoint=checkpoint)
    config = saved.config
    # The networks' sizes follow from the images: without them a run cannot be read back.
    data = load_dataset(config.data, **config.reading())
    generator, discriminator = build_networks(config, data, quantizer_factory(config))
    with saved.fitting():
        # Only the average is sampled; the generator that was trained is not needed.
        generator.load_state_dict(saved.state["average"]["model"])
        discriminator.load_state_dict(saved.state["discriminator"])
    device = make_accelerator(config).device
    for network in (generator, discriminator):
        network.to(device).eval().requires_grad_(False)
    return TrainedRun(
        saved.folder, config, data, checkpoint, saved.step, saved.seconds, generator, discriminator
    )


def checkpoint_title(step: int, checkpoint: Which) -> str:
    """Return what was looked at, as the start of a line: ``step 200``, or ``step 200 (best)``."""
    return f"step {step} (best)" if checkpoint == "best" else f"step {step}"


def chosen_classes(run: TrainedRun, classes: Sequence[int]) -> list[int]:
    """Return the classes to draw: those asked for, or all.

    Raises:
        ConfigError: for a class that does not exist.
    """
    count = run.data.num_classes
    wrong = [c for c in classes if not 0 <= c < count]
    if wrong:
        raise ConfigError(f"classes {wrong} do not exist; {run.config.data} has 0 to {count - 1}")
    return list(classes or range(count))


def class_titles(run: TrainedRun, classes: Sequence[int]) -> list[str]:
    """Return the titles of columns: names of classes where there are names that fit, else numbers."""
    names = run.data.class_names
    return [names[c] if names and len(names[c]) <= 8 else str(c) for c in classes]


def _at_least_one(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ConfigError(f"{name} is {number}; expected at least 1")


def sample_run(
    run: TrainedRun,
    *,
    seed: int,
    rows: int,
    classes: Sequence[int],
    out: Path,
    truncation: float | None = None,
    single_images: Path | None = None,
) -> None:
    """Draw new images and write them as one picture, one column a class, and on request as single files.

    Args:
        run: the run.
        seed: of the noise; the same seed draws the same images.
        rows: images per class.
        classes: which classes; empty for all.
        out: the PNG of the grid.
        truncation: see `Sampler`.
        single_images: folder for one PNG per image, ``class3_0007.png``.

    Raises:
        ConfigError: for a class that does not exist or no rows.
        RunError: when a file cannot be written.
    """
    chosen = chosen_classes(run, classes)
    _at_least_one(rows=rows)
    sampler = run.sampler(truncation=truncation)
    with isolated_rng(seed):
        images = class_columns(sampler, chosen, rows)
    make_folder(out.parent)
    if single_images is not None:
        make_folder(single_images)
        for i, image in enumerate(images.cpu()):
            save_image(image, single_images / f"class{chosen[i % len(chosen)]}_{i // len(chosen):04d}.png")
    save_grid(images, out, columns=len(chosen), titles=class_titles(run, chosen))


def interpolate_run(
    run: TrainedRun,
    *,
    seed: int,
    rows: int,
    steps: int,
    classes: Sequence[int],
    out: Path,
    truncation: float | None = None,
) -> None:
    """Write strips of images from one noise to another, each of one class, the classes in turn.

    Args:
        run: the run.
        seed: of the noise.
        rows: strips.
        steps: images of a strip, including both ends.
        classes: which classes; empty for all.
        out: the PNG.
        truncation: see `Sampler`.

    Raises:
        ConfigError: for a class that does not exist, no rows, or fewer than two steps.
        RunError: when the file cannot be written.
    """
    chosen = chosen_classes(run, classes)
    _at_least_one(rows=rows)
    if steps < 2:
        raise ConfigError(f"a strip has {steps} images; expected at least 2")
    sampler = run.sampler(truncation=truncation)
    # A strip keeps its class: between two classes the networks have nothing to interpolate.
    labels = torch.tensor([chosen[i % len(chosen)] for i in range(rows)])
    with isolated_rng(seed):
        images = interpolation_strips(sampler, labels, steps=steps)
    make_folder(out.parent)
    save_grid(images, out, columns=steps)


def sweep_truncation(
    run: TrainedRun, *, seed: int, truncations: Sequence[float], classes: Sequence[int], out: Path
) -> None:
    """Write one row of images for each truncation, from the same random numbers, one column a class.

    Args:
        run: the run.
        seed: of the noise.
        truncations: see `Sampler`.
        classes: which classes; empty for all.
        out: the PNG.

    Raises:
        ConfigError: for a class that does not exist, or a truncation that is not positive.
        RunError: when the file cannot be written.
    """
    chosen = chosen_classes(run, classes)
    rows = []
    for truncation in truncations:
        sampler = run.sampler(truncation=truncation)
        with isolated_rng(seed):  # the same noise for each row
            rows.append(class_columns(sampler, chosen, 1))
    make_folder(out.parent)
    save_grid(torch.cat(rows), out, columns=len(chosen), titles=class_titles(run, chosen))


def make_evaluator(
    run: TrainedRun, *, extractor: str | None = None, statistics: Path | None = None
) -> Evaluator:
    """Return what measures a run's generators.

    Args:
        run: the run.
        extractor: see `load_extractor`; by default that of the run.
        statistics: see `load_statistics`; the Frechet distance is to these instead of to the run's images.
    """
    ruler = load_extractor(extractor or run.config.extractor, run.data)
    stored = None if statistics is None else load_statistics(statistics, dim=ruler.dim)
    return Evaluator(run.data, ruler, make_accelerator(run.config), stored=stored)


def _sample_count(run: TrainedRun, samples: int | None) -> int:
    """Return how many images to measure: as asked for, or as the run's options say."""
    if samples is not None and samples < 2:
        raise ConfigError(f"samples is {samples}; expected at least 2")
    return run.config.eval_samples if samples is None else samples


def _checked_images(run: TrainedRun) -> dict[str, MeasuredSet]:
    """Return what a run is measured on, which has to be what it was."""
    images = real_images(run.config.data, run.data)
    check_measured(run.folder.checkpoints(), run.step, images)
    return images


def evaluate_run(
    run: TrainedRun,
    *,
    samples: int | None = None,
    extractor: str | None = None,
    statistics: Path | None = None,
    save_real: Path | None = None,
) -> Evaluation:
    """Measure a run again and write ``evaluation.json``.

    Args:
        run: the run.
        samples: generated images; by default as many as the run's options say.
        extractor: see `make_evaluator`.
        statistics: see `make_evaluator`.
        save_real: write the statistics of the run's images there, see `save_statistics`.

    Raises:
        CheckpointError: when the real images are not those that the run was measured on.
    """
    count, measured_on = _sample_count(run, samples), _checked_images(run)
    if save_real is not None and save_real.suffix != ".npz":  # before minutes of work
        raise ConfigError(f"statistics go into a file that ends in .npz; got {save_real}")
    evaluator = make_evaluator(run, extractor=extractor, statistics=statistics)
    if save_real is not None:
        save_statistics(save_real, evaluator.real.all.moments)
    result = evaluator(run.sampler(), samples=count)
    stored = {} if statistics is None else {"statistics": _file_record(statistics)}
    write_evaluation(
        run.folder.evaluation,
        result._asdict() | stored | {"fq": run.config.fq, "checkpoint": run.checkpoint},
        step=run.step,
        seconds=run.seconds,
        measured_on=measured_on,
        seed=run.config.seed,
    )
    return result


def _file_record(path: Path) -> dict[str, str]:
    """Return what ``evaluation.json`` says of a file of statistics."""
    return {"file": str(path), "hash": hashlib.sha256(path.read_bytes()).hexdigest()[:12]}


def evaluate_truncations(
    run: TrainedRun,
    truncations: Sequence[float],
    *,
    samples: int | None = None,
    extractor: str | None = None,
) -> list[Evaluation]:
    """Measure a run at several truncations and write ``truncations.csv``.

    Args:
        run: the run.
        truncations: see `Sampler`.
        samples: as in `evaluate_run`.
        extractor: see `make_evaluator`.

    Raises:
        CheckpointError: as `evaluate_run`.
    """
    count = _sample_count(run, samples)
    _checked_images(run)
    # All samplers first: a wrong truncation is refused before minutes of measuring.
    samplers = [run.sampler(truncation=truncation) for truncation in truncations]
    evaluator = make_evaluator(run, extractor=extractor)
    results = [evaluator(sampler, samples=count) for sampler in samplers]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["truncation", "step", *Evaluation._fields])
    for truncation, figures in zip(truncations, results, strict=True):
        writer.writerow([truncation, run.step, *figures])
    write_atomic(run.folder.path / "truncations.csv", text.getvalue().encode())
    return results
