"""The commands for FQ-GAN runs: options are read here, the work is done elsewhere."""

import argparse
import dataclasses
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

from fq_toolkit.fqgan.config import TRAINER, FQGANConfig, preset
from fq_toolkit.training.config import load_config, to_json
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.extras import require

TRAIN_HELP = """Train an FQ-GAN.

With no options: scikit-learn's digits at 16x16, a class-conditional hinge GAN with spectral norm and feature
quantization. The run folder then holds config.json, metrics.csv, checkpoints/, samples.png, curves.png and
evaluation.json. Ctrl-C saves; --resume goes on bit by bit."""


def train_command(arguments: list[str]) -> int:
    """Run ``train fqgan``.

    Returns:
        The exit status: 0, or 128 + the number of the signal that stopped the run.
    """
    tyro = require("tyro", purpose="the command line")
    options = _parse_train(tyro, arguments)
    if options.print_config:
        sys.stdout.write(to_json(options.config, trainer=TRAINER))
        return 0
    from fq_toolkit.fqgan.trainer import dry_run, train
    from fq_toolkit.training.progress import format_duration, make_reporter

    if options.dry_run:
        report = dry_run(options.config, out=options.out, resume=options.resume)
        sys.stdout.write(report + "\n" if report else "")
        return 0
    result = train(options.config, out=options.out, resume=options.resume, reporter=make_reporter(sys.stderr))
    if not result.is_main_process:
        return 0 if result.signal is None else 128 + result.signal
    if result.signal is not None:
        name = "Ctrl-C" if result.signal == signal.SIGINT else signal.Signals(result.signal).name
        sys.stdout.write(
            f"Stopped by {name} and saved at step {result.step} of {options.config.steps}. "
            f"Go on with: fq-toolkit train fqgan --resume {result.run}\n"
        )
        return 128 + result.signal
    sys.stdout.write(
        f"{result.evaluation}\n{result.step} steps in {format_duration(result.seconds)} of training\n"
        f"run folder: {result.run} (samples.png, curves.png, metrics.csv)\n"
    )
    return 0


def _first_look(arguments: list[str]) -> argparse.Namespace:
    """Find the options that decide what the defaults of all others are."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--resume", type=Path)
    return parser.parse_known_args(arguments)[0]


def _parse_train(tyro: Any, arguments: list[str]) -> Any:
    """Read the options of ``train fqgan``: those given, over --resume's or --config's, over the preset's."""
    first = _first_look(arguments)
    if first.resume and first.config:
        raise ConfigError("--resume takes the options of the run, --config those of a file: give one of them")
    if first.resume:
        from fq_toolkit.training.run_folder import RunFolder

        default = load_config(FQGANConfig, RunFolder.open(first.resume).config, trainer=TRAINER)
    elif first.config:
        default = load_config(FQGANConfig, first.config, trainer=TRAINER)
    else:
        default = preset(first.preset or "digits")
    if first.preset:
        preset(first.preset)

    conf = tyro.conf

    @dataclasses.dataclass(frozen=True)
    class TrainOptions:
        out: Path | None = None
        """New run folder; by default runs/fqgan-PRESET-FQ-seedSEED-TIME."""
        resume: Path | None = None
        """Go on with the run in this folder, bit by bit."""
        dry_run: conf.FlagCreatePairsOff[bool] = False  # type: ignore[name-defined]
        """Build everything, do one step, write nothing."""
        print_config: conf.FlagCreatePairsOff[bool] = False  # type: ignore[name-defined]
        """Print the options as JSON and stop."""
        config_file: Annotated[Path | None, conf.arg(name="config")] = None
        """Options from a config.json; those on the command line win."""
        config: Annotated[FQGANConfig, conf.arg(name="")] = default

    return tyro.cli(TrainOptions, args=arguments, prog="fq-toolkit train fqgan", description=TRAIN_HELP)


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
    if arguments[:1] in (["-h"], ["--help"]):
        sys.stdout.write("usage: fq-toolkit plot RUN\nDraw curves.png from metrics.csv.\n")
        return 0
    if arguments:
        raise ConfigError(f"plot takes no options; got {' '.join(arguments)}")
    from fq_toolkit.fqgan.trainer import draw_curves
    from fq_toolkit.training.run_folder import RunFolder

    folder = RunFolder.open(run)
    draw_curves(folder)
    sys.stdout.write(f"{folder.curves}\n")
    return 0
