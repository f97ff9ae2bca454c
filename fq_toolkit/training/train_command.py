"""``fq-toolkit train NAME``: the options that every trainer has, and what is said at the end of a run."""

import argparse
import dataclasses
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from fq_toolkit.training.config import load_config, to_json
from fq_toolkit.training.errors import ConfigError, require
from fq_toolkit.training.reporting.progress import format_duration, make_reporter
from fq_toolkit.training.session import Trainer, draw_curves, dry_run, train
from fq_toolkit.training.storage.measured_data import measured_line
from fq_toolkit.training.storage.run_folder import RunFolder


def run_train_command(
    trainer: Trainer[Any],
    arguments: list[str],
    *,
    defaults: Callable[[list[str]], Any],
    description: str,
    program: str | None = None,
) -> int:
    """Run ``train NAME [options]``.

    Args:
        trainer: which.
        arguments: words after the trainer's name.
        defaults: those words -> the options to start from, where a preset or a task decides them. It looks
            at the words it knows (see `first_look`) and refuses their wrong values with ConfigError.
        description: for ``--help``.
        program: what a user types to get here; by default ``fq-toolkit train NAME``.

    Returns:
        The exit status: 0, or 128 + the number of the signal that stopped the run.
    """
    tyro = require("tyro", purpose="the command line")
    program = program or f"fq-toolkit train {trainer.name}"
    options = _parse(tyro, trainer, arguments, defaults, description, program)
    if options.print_config:
        sys.stdout.write(to_json(options.config, trainer=trainer.name))
        return 0
    if options.dry_run:
        report = dry_run(trainer, options.config, out=options.out, resume=options.resume)
        sys.stdout.write(report + "\n" if report else "")
        return 0
    reporter = make_reporter(sys.stderr)
    result = train(trainer, options.config, out=options.out, resume=options.resume, reporter=reporter)
    if not result.is_main_process:
        return 0 if result.signal is None else 128 + result.signal
    if result.signal is not None:
        name = "Ctrl-C" if result.signal == signal.SIGINT else signal.Signals(result.signal).name
        sys.stdout.write(
            f"Stopped by {name} and saved at step {result.step} of {options.config.steps}. "
            f"Go on with: {program} --resume {result.run}\n"
        )
        return 128 + result.signal
    run = RunFolder(result.run)
    sys.stdout.write(
        f"{result.evaluation}\n{measured_line(run)}{best_line(run, result.step)}"
        f"{result.step} steps in {format_duration(result.seconds)} of training\n"
        f"run folder: {result.run} ({', '.join(trainer.artifacts)})\n"
    )
    return 0


def best_line(run: RunFolder, last: int) -> str:
    """Return a line on the best checkpoint, when that is not the last."""
    best = run.checkpoints().best()
    if best is None or best.step == last:
        return ""
    return f"best checkpoint: step {best.step}, {best.column} {best.value:.4g} (--checkpoint best)\n"


def first_look(arguments: list[str], *names: str) -> argparse.Namespace:
    """Find options that decide what the defaults of all others are; those not given are None."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in names:
        parser.add_argument(f"--{name}")
    return parser.parse_known_args(arguments)[0]


def _parse(
    tyro: Any,
    trainer: Trainer[Any],
    arguments: list[str],
    defaults: Callable[[list[str]], Any],
    description: str,
    program: str,
) -> Any:
    """Read the options: those given, over --resume's or --config's, over the defaults."""
    first = first_look(arguments, "config", "resume")
    if first.resume and first.config:
        raise ConfigError("--resume takes the options of the run, --config those of a file: give one of them")
    start = defaults(arguments)
    if first.resume:
        start = load_config(
            trainer.config_class, RunFolder.open(Path(first.resume)).config, trainer=trainer.name
        )
    elif first.config:
        start = load_config(trainer.config_class, Path(first.config), trainer=trainer.name)

    conf = tyro.conf

    @dataclasses.dataclass(frozen=True)
    class TrainOptions:
        out: Path | None = None
        """New run folder; by default runs/ and a name made of the options and the time."""
        resume: Path | None = None
        """Go on with the run in this folder, bit by bit."""
        dry_run: conf.FlagCreatePairsOff[bool] = False  # type: ignore[name-defined]
        """Build everything, do two steps, write nothing."""
        print_config: conf.FlagCreatePairsOff[bool] = False  # type: ignore[name-defined]
        """Print the options as JSON and stop."""
        config_file: Annotated[Path | None, conf.arg(name="config")] = None
        """Options from a config.json; those on the command line win."""
        config: Annotated[trainer.config_class, conf.arg(name="")] = start  # type: ignore[name-defined]

    return tyro.cli(TrainOptions, args=arguments, prog=program, description=description)


def run_plot_command(trainer: Trainer[Any], run: Path, arguments: list[str]) -> int:
    """Run ``plot RUN``."""
    if arguments[:1] in (["-h"], ["--help"]):
        sys.stdout.write("usage: fq-toolkit plot RUN\nDraw curves.png from metrics.csv.\n")
        return 0
    if arguments:
        raise ConfigError(f"plot takes no options; got {' '.join(arguments)}")
    folder = RunFolder.open(run)
    draw_curves(trainer, folder)
    sys.stdout.write(f"{folder.curves}\n")
    return 0
