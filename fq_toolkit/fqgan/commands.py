"""The commands for FQ-GAN runs: options are read here, the work is done elsewhere."""

import sys
from pathlib import Path

from fq_toolkit.fqgan.config import FQGANConfig, preset
from fq_toolkit.training.extras import require
from fq_toolkit.training.train_command import first_look, run_plot_command, run_train_command

TRAIN_HELP = """Train an FQ-GAN.

With no options: scikit-learn's digits at 16x16, a class-conditional hinge GAN with spectral norm and feature
quantization. The run folder then holds config.json, metrics.csv, checkpoints/, samples.png, curves.png and
evaluation.json. Ctrl-C saves; --resume goes on bit by bit."""


def train_command(arguments: list[str]) -> int:
    """Run ``train fqgan``."""
    from fq_toolkit.fqgan.trainer import GAN_TRAINER

    def defaults(words: list[str]) -> FQGANConfig:
        return preset(first_look(words, "preset").preset or "digits")

    return run_train_command(GAN_TRAINER, arguments, defaults=defaults, description=TRAIN_HELP)


def sample_command(run: Path, arguments: list[str]) -> int:
    """Run ``sample RUN``."""
    tyro = require("tyro", purpose="the command line")

    def sample(
        rows: int = 8,
        classes: tuple[int, ...] = (),
        seed: int = 0,
        truncation: float | None = None,
        step: int | None = None,
        out: Path | None = None,
        images: Path | None = None,
    ) -> int:
        """Draw new images from a run, one column a class.

        Args:
            rows: Images per class.
            classes: Which classes, for example 3 7; all by default.
            seed: Of the noise.
            truncation: Draw noise beyond this many standard deviations again: cleaner and less varied.
            step: Which checkpoint; the newest by default.
            out: The PNG; by default samples-seedSEED.png in the run folder.
            images: Also write every image as a file of its own into this folder.
        """
        from fq_toolkit.fqgan.runs import load_run, sample_run

        target = out or run / f"samples-seed{seed}.png"
        trained = load_run(run, step=step, truncation=truncation)
        sample_run(trained, seed=seed, rows=rows, classes=classes, out=target, single_images=images)
        sys.stdout.write(f"{target} (step {trained.step})\n")
        return 0

    return int(tyro.cli(sample, args=arguments, prog="fq-toolkit sample RUN"))


def evaluate_command(run: Path, arguments: list[str]) -> int:
    """Run ``evaluate RUN``."""
    tyro = require("tyro", purpose="the command line")

    def evaluate(samples: int | None = None, step: int | None = None) -> int:
        """Measure a run: Frechet distance with its floor, and class accuracy; writes evaluation.json.

        Args:
            samples: Generated images; by default as in the run.
            step: Which checkpoint; the newest by default.
        """
        from fq_toolkit.fqgan.runs import evaluate_run, load_run

        trained = load_run(run, step=step)
        sys.stdout.write(f"step {trained.step}: {evaluate_run(trained, samples=samples)}\n")
        return 0

    return int(tyro.cli(evaluate, args=arguments, prog="fq-toolkit evaluate RUN"))


def plot_command(run: Path, arguments: list[str]) -> int:
    """Run ``plot RUN``."""
    from fq_toolkit.fqgan.trainer import GAN_TRAINER

    return run_plot_command(GAN_TRAINER, run, arguments)
