"""The commands of FQ-GAN runs: they read options and call what does the work."""

import sys
from pathlib import Path

from fq_toolkit.fqgan.gan.codebook import codebook_pictures, dictionaries
from fq_toolkit.fqgan.gan.config import FQGANConfig, preset
from fq_toolkit.fqgan.gan.runs import (
    checkpoint_title,
    evaluate_run,
    evaluate_truncations,
    interpolate_run,
    load_run,
    sample_run,
    sweep_truncation,
)
from fq_toolkit.fqgan.gan.training import GAN_TRAINER
from fq_toolkit.training.errors import ConfigError, require
from fq_toolkit.training.storage.best import parse_checkpoint
from fq_toolkit.training.storage.measured_data import measured_line
from fq_toolkit.training.train_command import first_look, run_plot_command, run_train_command

TRAIN_HELP = """Train an FQ-GAN.

With no options: scikit-learn's digits at 16x16, a class-conditional hinge GAN with spectral norm; add
--fq regularize for feature quantization. The run folder then holds config.json, metrics.csv, checkpoints/,
samples.png, curves.png and evaluation.json. Ctrl-C saves; --resume goes on bit by bit."""


def train_command(arguments: list[str]) -> int:
    """Run ``train fqgan``."""

    def defaults(words: list[str]) -> FQGANConfig:
        name = first_look(words, "preset").preset or "digits"
        if name.startswith("u-gat-it"):
            raise ConfigError(f"{name} has a trainer of its own: fq-toolkit train ugatit --preset {name}")
        return preset(name)

    return run_train_command(GAN_TRAINER, arguments, defaults=defaults, description=TRAIN_HELP)


def sample_command(run: Path, arguments: list[str]) -> int:
    """Run ``sample RUN``."""
    tyro = require("tyro", purpose="the command line")

    # Tyro makes the options of a command from the signature and the docstring of the function inside it.
    def sample(
        rows: int = 8,
        classes: tuple[int, ...] = (),
        seed: int = 0,
        truncation: float | None = None,
        interpolate: int | None = None,
        truncation_sweep: tuple[float, ...] = (),
        checkpoint: str = "last",
        out: Path | None = None,
        images: Path | None = None,
    ) -> int:
        """Draw new images from a run, one column a class; or strips, or a sweep.

        Args:
            rows: Images per class, or strips.
            classes: Which classes, for example 3 7; all by default.
            seed: Of the noise.
            truncation: Less varied and cleaner images: draw noise beyond this many standard deviations again;
                with StyleGAN2 pull styles towards their mean, which 1 leaves as they are.
            interpolate: Instead, strips of this many images from one noise to another, each of one class.
            truncation_sweep: Instead, one row of images for each of these truncations, for example 0.3 0.6 1.
            checkpoint: best (the lowest Frechet distance), last, or a step.
            out: The PNG; by default samples-, strips- or sweep-seedSEED.png in the run
                folder.
            images: Also write every image as a file of its own into this folder.
        """
        # Each of these draws something else; the last writes files beside the grid of samples.
        chosen = [interpolate is not None, bool(truncation_sweep), images is not None]
        if sum(chosen) > 1:
            raise ConfigError("--interpolate, --truncation-sweep and --images do different things: give one")
        kind = "strips" if chosen[0] else "sweep" if chosen[1] else "samples"
        target = out or run / f"{kind}-seed{seed}.png"
        trained = load_run(run, checkpoint=parse_checkpoint(checkpoint))
        if interpolate is not None:
            interpolate_run(
                trained,
                seed=seed,
                rows=rows,
                steps=interpolate,
                classes=classes,
                out=target,
                truncation=truncation,
            )
        elif truncation_sweep:
            sweep_truncation(trained, seed=seed, truncations=truncation_sweep, classes=classes, out=target)
        else:
            sample_run(
                trained,
                seed=seed,
                rows=rows,
                classes=classes,
                out=target,
                truncation=truncation,
                single_images=images,
            )
        sys.stdout.write(f"{target} ({checkpoint_title(trained.step, trained.checkpoint)})\n")
        return 0

    return int(tyro.cli(sample, args=arguments, prog="fq-toolkit sample RUN"))


def evaluate_command(run: Path, arguments: list[str]) -> int:
    """Run ``evaluate RUN``."""
    tyro = require("tyro", purpose="the command line")

    def evaluate(
        samples: int | None = None,
        checkpoint: str = "last",
        extractor: str | None = None,
        truncations: tuple[float, ...] = (),
        statistics: Path | None = None,
        save_statistics: Path | None = None,
    ) -> int:
        """Measure a run: distances with their floors, scores, coverage; writes evaluation.json.

        Args:
            samples: Generated images; by default as in the run.
            checkpoint: best (the lowest Frechet distance), last, or a step.
            extractor: What measures images, for example inception:FILE; as in the run by default.
            truncations: Instead, measure at each of these truncations and write truncations.csv.
            statistics: Measure the Frechet distance to mu and sigma of this .npz, as pytorch-fid and TTUR
                write them with the same extractor, instead of to the run's images.
            save_statistics: Write mu and sigma of the run's images into this .npz.
        """
        if truncations and (statistics or save_statistics):
            raise ConfigError("--truncations and statistics in files do not go together: leave one out")
        trained = load_run(run, checkpoint=parse_checkpoint(checkpoint))
        chosen = checkpoint_title(trained.step, trained.checkpoint)
        if truncations:
            results = evaluate_truncations(trained, truncations, samples=samples, extractor=extractor)
            for truncation, figures in zip(truncations, results, strict=True):
                sys.stdout.write(f"{chosen}, truncation {truncation}: {figures}\n")
            return 0
        figures = evaluate_run(
            trained, samples=samples, extractor=extractor, statistics=statistics, save_real=save_statistics
        )
        sys.stdout.write(f"{chosen}: {figures}\n{measured_line(trained.folder)}")
        return 0

    return int(tyro.cli(evaluate, args=arguments, prog="fq-toolkit evaluate RUN"))


def codebook_command(run: Path, arguments: list[str]) -> int:
    """Run ``codebook RUN``."""
    tyro = require("tyro", purpose="the command line")

    def codebook(
        block: int | None = None,
        images: int = 500,
        codes: int = 8,
        patches: int = 6,
        seed: int = 0,
        checkpoint: str = "last",
        out: Path | None = None,
    ) -> int:
        """Show what the codes of the discriminator stand for.

        Writes, for every dictionary, the patches of real and generated images that share a code, and a map of
        the features that meet in a centroid.

        Args:
            block: Only the dictionary after this block.
            images: Real images looked at, and as many generated ones.
            codes: Codes shown: those in which most real and generated features meet.
            patches: Patches of each kind and code.
            seed: Of the choice of images and of the noise.
            checkpoint: best (the lowest Frechet distance), last, or a step.
            out: Folder of the pictures; the run folder by default.
        """
        for name, number in (("images", images), ("codes", codes), ("patches", patches)):
            if number < 1:
                raise ConfigError(f"{name} is {number}; expected at least 1")
        trained = load_run(run, checkpoint=parse_checkpoint(checkpoint))
        there = [int(name) for name in dictionaries(trained)]
        if not there:
            raise ConfigError(f"{run} has no dictionaries: it was trained with --fq none")
        for number in there if block is None else [block]:
            pictures = codebook_pictures(
                trained,
                block=number,
                images=images,
                codes=codes,
                patches=patches,
                seed=seed,
                folder=out or run,
            )
            shared = ", ".join(f"code {c.code} {c.real} / {c.fake}" for c in pictures.codes)
            sys.stdout.write(
                f"{pictures.patches} and {pictures.meeting.name}, from the top, real / generated: {shared}\n"
            )
        return 0

    return int(tyro.cli(codebook, args=arguments, prog="fq-toolkit codebook RUN"))


def plot_command(run: Path, arguments: list[str]) -> int:
    """Run ``plot RUN``."""
    return run_plot_command(GAN_TRAINER, run, arguments)
