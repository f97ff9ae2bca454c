"""What keeps a latent alive, and where should it go in? ``python -m benchmarks.study_optimus``.

Trains small sentence VAEs from scratch on image captions: four schedules of beta, three ways to inject the
latent, and the plain decoder as the reference. All arms of a seed share sentences, sizes, order and steps.
A run that has ended is in the results file and is not run again: the study can be stopped, and goes on when
called again.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import platform
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from benchmarks import machine, results
from benchmarks.study_optimus_plain import train_plain
from benchmarks.study_optimus_report import plot, table
from benchmarks.study_results import DIVERGED, Figures, Row, Setting, append, read
from benchmarks.timing import rotation
from fq_toolkit.optimus.config import OptimusConfig
from fq_toolkit.optimus.trainer import train
from fq_toolkit.training.errors import ConfigError, DivergedError, RunError
from fq_toolkit.training.progress import SilentReporter

# What all runs share. Of the first ``limit`` training captions, those of more than ``max_length`` tokens are
# left out; so are those of the held-out ones.
BASE = OptimusConfig(
    preset="captions", limit=30_000, max_length=24, tokenizer="subword", vocab_size=4000,
    layers=2, width=128, heads=4, dropout=0.1, latent_size=32, batch_size=32, steps=1000,
    lr=1e-3, lr_warmup=100, n_cycle=2, autoencoder_warmup=0.0, free_bits=0.0,
    eval_sentences=500, iw_samples=20,
    checkpoint_every=0, evaluate_every=0, keep_checkpoints=1, log_every=100, device="cpu",
)  # fmt: skip
PLAIN = "plain GPT-2"
CYCLICAL = "cyclical + free bits"
# Arm -> the options by which it differs from BASE. The first group compares schedules, the second injections.
ARMS: dict[str, dict[str, object]] = {
    "constant beta 1": {"schedule": "constant"},
    "monotonic": {"schedule": "monotonic"},
    "cyclical": {},
    CYCLICAL: {"free_bits": 0.5},
    f"{CYCLICAL}, embedding": {"free_bits": 0.5, "mode": "embedding"},
    f"{CYCLICAL}, both": {"free_bits": 0.5, "mode": "both"},
    PLAIN: {},
}
METRICS = {
    "sentences": "sentences",
    "negative_elbo": "-ELBO",
    "kl": "KL",
    "mutual_information": "MI",
    "active_units": "AU",
    "reconstruction_from_mean": "reconstruction",
    "reconstruction_from_other": "reconstruction from another latent",
    "ppl_per_bpe_token": "PPL per BPE token",
    "ppl_per_word": "PPL per word",
}
LAST = "PPL per word"
_SEEDS, _QUICK = 3, {"steps": 6, "eval_sentences": 20, "iw_samples": 2, "limit": 500}


class Stopped(Exception):
    """A signal ended a run before its last step."""


def captions() -> tuple[str, str]:
    """Paths of the captions to train on and to measure with.

    Raises:
        ConfigError: when they are not there.
    """
    root = Path(os.environ.get("FQ_TOOLKIT_DATA") or machine.ROOT.parent / "shared" / "data") / "captions"
    paths = root / "train.txt", root / "valid.txt"
    for path in paths:
        if not path.is_file():
            raise ConfigError(f"{path} does not exist: set FQ_TOOLKIT_DATA to the folder with captions/")
    return str(paths[0]), str(paths[1])


def run_config(arm: str, seed: int, *, quick: bool) -> OptimusConfig:
    """Options of one run: the same for all but for the arm's own and the seed."""
    data, valid = captions()
    options = {**ARMS[arm], **(_QUICK if quick else {}), "data": data, "valid": valid, "seed": seed}
    return dataclasses.replace(BASE, **options)  # type: ignore[arg-type]


def run_once(arm: str, config: OptimusConfig) -> dict[str, float]:
    """Train one arm with one seed; returns metric -> value, :data:`LAST` last.

    Raises:
        Stopped: when a signal came.
    """
    if arm == PLAIN:
        return train_plain(config)
    folder = Path(tempfile.mkdtemp(prefix="study-optimus-"))
    try:
        result = train(config, out=folder / "run", reporter=SilentReporter())
    except DivergedError:
        return {DIVERGED: 1.0}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if result.signal is not None or result.evaluation is None:
        raise Stopped(signal.Signals(result.signal or signal.SIGINT).name)
    scores = result.evaluation.figures.language
    return {name: float(getattr(scores, field)) for field, name in METRICS.items()}


def finished(figures: Figures) -> set[tuple[str, int]]:
    """Arm and seed of the runs that need not be run again: those whose last figure is there."""
    return {
        (arm, seed)
        for metric in (LAST, DIVERGED)
        for arm, by_seed in figures.by_arm(metric).items()
        for seed in by_seed
    }


def run_all(setting: Setting, seeds: int, path: Path, *, quick: bool, console: Console) -> None:
    """Do the runs that the results file lacks, seed by seed, and append each when it has ended."""
    runs = [(arm, seed) for seed in range(seeds) for arm in rotation(tuple(ARMS), seed)]
    done = finished(Figures(read(path), setting))
    left = [run for run in runs if run not in done]
    append(path, [])  # a file that cannot be written is better found now than after the first run
    for number, (arm, seed) in enumerate(left, start=1):
        figures = run_once(arm, run_config(arm, seed, quick=quick))
        today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        append(path, [Row(setting, arm, seed, name, value, today) for name, value in figures.items()])
        said = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        console.print(f"{number}/{len(left)} seed {seed} {arm}: {said}", markup=False, highlight=False)


def make_setting(*, quick: bool) -> Setting:
    """What all runs of this call share."""
    revision, dirty = machine.commit()
    config = run_config(PLAIN, 0, quick=quick)
    versions = [machine.package_version(name) for name in ("fq-toolkit", "transformers", "tokenizers")]
    return Setting(
        preset="captions-quick" if quick else "captions",
        steps=config.steps,
        samples=config.eval_sentences,
        commit=revision,
        dirty=dirty,
        machine=machine.machine_name("cpu"),
        device="cpu",
        threads=torch.get_num_threads(),
        versions=", ".join(
            [*filter(None, versions), f"torch {torch.__version__}", platform.python_version()]
        ),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; returns the exit status."""
    command = argparse.ArgumentParser(prog="python -m benchmarks.study_optimus", description=__doc__)
    command.add_argument("--seeds", type=int, default=_SEEDS, help=f"seeds 0 to N-1 (default {_SEEDS})")
    command.add_argument("--quick", action="store_true", help="a minute: whether it works, no figures")
    command.add_argument("--threads", type=int, help="CPU threads")
    command.add_argument(
        "--report", action="store_true", help="no runs: table and picture of the results file"
    )
    command.add_argument("--results", type=Path, help="CSV; by default in benchmarks/results/")
    options = command.parse_args(arguments)
    console = Console()
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        name = f"study_optimus-{machine.machine_name('cpu')}.csv"
        path = options.results or (Path(scratch) if options.quick else results.DIRECTORY) / name
        code = 0
        try:
            if not options.report:
                seeds = 1 if options.quick else options.seeds
                setting = make_setting(quick=options.quick)
                run_all(setting, seeds, path, quick=options.quick, console=console)
        except (Stopped, KeyboardInterrupt) as error:
            console.print(f"stopped ({error}): the run in progress is not counted; call again to go on")
            code = 130
        except (ConfigError, RunError) as error:
            sys.stderr.write(f"{error}\n")
            return 2
        rows = read(path)
        if rows:
            figures = Figures(rows, rows[-1].setting)
            console.print(table(figures, tuple(ARMS)), markup=False, highlight=False, soft_wrap=True)
            plot(figures, tuple(ARMS), path.with_suffix(".png"))
    return code


if __name__ == "__main__":
    sys.exit(main())
