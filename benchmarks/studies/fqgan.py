"""Does feature quantization help a GAN? ``python -m benchmarks.studies.fqgan``.

Trains every arm with the same seeds, steps and data, so that only ``--fq`` differs, and compares the arms
seed by seed. A run that has ended is in the results file and is not run again: the study can be stopped and
goes on when it is called again.
"""

from __future__ import annotations

import argparse
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import get_args, get_type_hints

import torch
from rich.console import Console

from benchmarks import machine, results
from benchmarks.gates import GATES, run_gates
from benchmarks.studies.plot import plot
from benchmarks.studies.report import table, verdicts
from benchmarks.studies.results import (
    ACCURACY,
    DIVERGED,
    FID,
    FLOOR,
    OTHERS,
    STEP_TIME,
    Figures,
    Setting,
    read,
)
from benchmarks.studies.runs import Stopped, exit_code, run_missing
from benchmarks.studies.setting import (
    BASELINE,
    QUICK_SAMPLES,
    QUICK_STEPS,
    find_data,
    make_setting,
    run_config,
)
from benchmarks.studies.summary import summary
from benchmarks.timing import rotation
from fq_toolkit.fqgan.gan.config import PRESETS, FQGANConfig
from fq_toolkit.fqgan.gan.training import run_name, train
from fq_toolkit.training.errors import DivergedError
from fq_toolkit.training.reporting.metrics_log import read_metrics
from fq_toolkit.training.reporting.progress import SilentReporter
from fq_toolkit.training.storage.run_folder import RunFolder

ARMS: tuple[str, ...] = get_args(get_type_hints(FQGANConfig)["fq"])
REFUSED = 3
# Seeds of the preset digits and of all others, which take longer.
_SEEDS, _FEWER_SEEDS, _QUICK_SEEDS = 8, 5, 2


class StepClock(SilentReporter):
    """Takes the time from one logged step to the next: there the loop has waited for the device."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last: tuple[int, float] | None = None

    def values(self, step: int, values: Mapping[str, float]) -> None:
        """Take the time of a logged step. Not from the start: the first steps also build things."""
        now = time.perf_counter()
        if self._last is not None:
            self.seconds.append((now - self._last[1]) / (step - self._last[0]))
        self._last = (step, now)


def plan(arms: Sequence[str], seeds: int, *, first: int = 0) -> list[tuple[str, int]]:
    """Return arm and seed of every run, seed by seed with rotating arms: a stopped study is balanced."""
    return [(arm, seed) for seed in range(first, first + seeds) for arm in rotation(arms, seed)]


def run_once(config: FQGANConfig, folder: Path) -> dict[str, float]:
    """Train one arm with one seed into a new folder.

    Returns:
        Metric -> value; the Frechet distance is the last. A run that diverged has only ``diverged``.

    Raises:
        Stopped: when a signal came.
        RunError: when a file cannot be written.
    """
    clock, others = StepClock(), machine.OtherLoad()
    try:
        result = train(config, out=folder, reporter=clock)
    except DivergedError:
        return {DIVERGED: 1.0}
    if result.signal is not None or result.evaluation is None:
        raise Stopped(result.signal or signal.SIGINT)
    evaluation = result.evaluation
    last = read_metrics(RunFolder(result.run).metrics)[-1]
    busy = others.cores()
    return {
        FLOOR: evaluation.floor,
        **({} if evaluation.accuracy is None else {ACCURACY: evaluation.accuracy}),
        f"kid[{evaluation.extractor}]": evaluation.kid,
        f"precision[{evaluation.extractor}]": evaluation.precision,
        f"recall[{evaluation.extractor}]": evaluation.recall,
        STEP_TIME: statistics.median(clock.seconds) if clock.seconds else result.seconds / result.step,
        **({} if busy is None else {OTHERS: busy}),
        **{name: value for name, value in last.items() if name.startswith(("usage/", "perplexity/"))},
        f"{FID}{evaluation.extractor}]": evaluation.fid,
    }


def run_in(setting: Setting, data: str, keep: Path | None, arm: str, seed: int) -> dict[str, float]:
    """Train one arm with one seed in a folder of its own, which is deleted unless it is to be kept."""
    config = run_config(setting, arm, seed, data=data)
    with tempfile.TemporaryDirectory(prefix="study-fqgan-", ignore_cleanup_errors=True) as scratch:
        folder = (keep or Path(scratch)) / f"{run_name(config)}-{time.strftime('%Y%m%d-%H%M%S')}"
        return run_once(config, folder)


def report(figures: Figures, path: Path, console: Console) -> None:
    """Print the table and what it means, and draw the picture beside the results file."""
    if not figures.values:
        console.print("no run has ended yet: nothing to compare")
        return
    console.print(table(figures, baseline=BASELINE))
    for sentence in verdicts(figures, baseline=BASELINE):
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    if figures.fid is not None:
        plot(figures, picture(path, figures.setting), baseline=BASELINE)


def picture(path: Path, setting: Setting) -> Path:
    """Return where the picture of a setting goes: beside the results file."""
    changes = re.sub(r"[^\w.=-]+", "_", setting.options)
    return path.with_name(f"{path.stem}-{setting.preset}{'-' * bool(changes)}{changes}.png")


def _gates_are_green(device: str, console: Console) -> bool:
    findings = [finding for texts in run_gates(GATES, device).values() for finding in texts]
    for finding in findings:
        console.print(finding, style="red", markup=False)
    if findings:
        console.print(
            "refused: nothing is measured while a gate is red; nothing was written", style="bold red"
        )
    return not findings


def study(arguments: argparse.Namespace, path: Path, console: Console) -> int:
    """Run what is missing and report; returns the exit code."""
    data = find_data(arguments.preset, arguments.data)
    setting = make_setting(arguments, data)
    usual = _SEEDS if arguments.preset == "digits" else _FEWER_SEEDS
    count = arguments.seeds or (_QUICK_SEEDS if arguments.quick else usual)
    runs = plan(arguments.arms, count, first=arguments.first_seed)
    if not _gates_are_green(arguments.device, console):
        return REFUSED
    if setting.dirty and not arguments.quick:
        console.print(
            "the code differs from the commit: rows are marked dirty, and nobody knows whether two calls ran "
            "the same code; measure in a clean checkout",
            style="red",
        )
    run = partial(run_in, setting, data, arguments.keep)

    def missing() -> None:
        run_missing(setting, runs, path, run, console, last=FID, brief=True)

    code = exit_code(missing, console, kept=not arguments.quick)
    report(Figures(read(path), setting), path, console)
    return code


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} was given, expected 1 or more")
    return number


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    command = argparse.ArgumentParser(
        prog="python -m benchmarks.studies.fqgan",
        description="Does feature quantization help? Trains every arm with the same seeds and compares them.",
    )
    add = command.add_argument
    add(
        *("--seeds",),
        type=_positive,
        metavar="N",
        help=f"how many seeds (default: {_SEEDS} with digits, else {_FEWER_SEEDS})",
    )
    add(
        *("--first-seed",),
        type=int,
        default=0,
        metavar="N",
        help="the first of them (%(default)s); search for options on seeds that the comparison does not use",
    )
    add("--steps", type=_positive, help="steps of every run; default: the preset's")
    add("--arms", nargs="+", choices=ARMS, default=ARMS, help="default: all; compared is with none")
    add("--preset", choices=list(PRESETS), default="digits", help="where all options start (%(default)s)")
    add("--data", type=Path, metavar="PATH", help="images; default: the preset's, or the shared file for it")
    add(
        *("--set",),
        nargs="+",
        default=[],
        metavar="OPTION=VALUE",
        help="change options of the preset, for example num_codes=128 fq_layers=[0,1] fq_revive=0.1",
    )
    add(
        "--quick",
        action="store_true",
        help=f"does everything work: {_QUICK_SEEDS} seeds, {QUICK_STEPS} steps, {QUICK_SAMPLES} samples, "
        "no results file",
    )
    add("--report", action="store_true", help="run nothing; report every setting of the results file")
    add("--results", type=Path, default=results.DIRECTORY, help="folder of the results files")
    add("--keep", type=Path, metavar="DIR", help="keep the run folders there; default: they are temporary")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--threads", type=_positive, help="CPU threads; default: every core (quick: 1)")
    return command


def main(words: Sequence[str] | None = None) -> int:
    """Run the study.

    Returns:
        The exit code: 0, 1 when a run failed or there is nothing to report, 2 for wrong options, 3 when a
        gate is red, 128 + n after signal n.
    """
    arguments = parser().parse_args(words)
    arguments.arms = list(dict.fromkeys(arguments.arms))
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.stderr.write("--device cuda was given, but this torch sees no CUDA device; use --device cpu\n")
        return 2
    torch.set_num_threads(arguments.threads or (1 if arguments.quick else machine.core_count()))
    console = Console(width=None if sys.stdout.isatty() else 120)
    return exit_code(lambda: chosen(arguments, console), console, kept=not arguments.quick)


def chosen(arguments: argparse.Namespace, console: Console) -> int:
    """Do what was asked for: the study, its quick form in a temporary folder, or only the report."""
    name = f"{results.STUDY}fqgan-{machine.machine_name(arguments.device)}.csv"
    if arguments.quick:
        with tempfile.TemporaryDirectory(prefix="study-fqgan-") as folder:
            code = study(arguments, Path(folder) / name, console)
        console.print(
            "quick run: so few steps say nothing about quality; no results file was touched", soft_wrap=True
        )
        return code
    path = arguments.results / name
    if not arguments.report:
        code = study(arguments, path, console)
        if path.exists():
            console.print(f"results: {path} and its pictures", soft_wrap=True)
        return code
    rows = read(path)
    for setting in dict.fromkeys(row.setting for row in rows):
        report(Figures(rows, setting), path, console)
    if not rows:
        sys.stderr.write(f"no rows in {path}; run `python -m benchmarks.studies.fqgan` first\n")
        return 1
    console.print(summary(rows, ARMS, baseline=BASELINE), markup=False, highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
