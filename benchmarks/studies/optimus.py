"""What keeps a latent alive, and where should it go in? ``python -m benchmarks.studies.optimus``.

Trains small sentence VAEs from scratch on image captions: four schedules of beta, three ways to inject the
latent, and the plain decoder as the reference. All arms of a seed share sentences, sizes, order and steps.
A run that has ended is in the results file and is not run again: the study can be stopped, and goes on when
called again. ``--case injection`` repeats the injections from smaller initial weights; ``--case grammar``
measures the default command by seeds.
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
from benchmarks.studies.optimus_plain import train_plain
from benchmarks.studies.optimus_report import plot, table
from benchmarks.studies.results import DIVERGED, Figures, Row, Setting, append, read
from benchmarks.timing import rotation
from fq_toolkit.optimus.tasks.vae.config import OptimusConfig, preset
from fq_toolkit.optimus.tasks.vae.training import train
from fq_toolkit.training.errors import ConfigError, DivergedError, RunError
from fq_toolkit.training.reporting.progress import SilentReporter

# What all runs share. Of the first ``limit`` training captions, those of more than ``max_length`` tokens are
# left out; so are those of the held-out ones.
BASE = OptimusConfig(
    preset="captions", limit=30_000, max_length=24, tokenizer="subword", vocab_size=4000,
    layers=2, width=128, heads=4, dropout=0.1, latent_size=32, batch_size=32, steps=1000,
    lr=1e-3, lr_warmup=0.1, n_cycle=2, autoencoder_warmup=0.0, free_bits=0.0,
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
# The injections again, from the release's weights to and from the latent: with those of BASE, what the
# embedding mode adds is at first far larger than the embeddings of tokens, which may be what it suffers from.
INJECTION_ARMS: dict[str, dict[str, object]] = {
    mode: {"free_bits": 0.5, "mode": mode, "init_std": 0.02} for mode in ("memory", "embedding", "both")
}
GRAMMAR_ARMS: dict[str, dict[str, object]] = {"fq-toolkit train optimus": {}}
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
ANALOGIES = {
    "accuracy": "analogies right",
    "changed": "factor changed",
    "kept": "others kept",
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


def arms_of(case: str) -> dict[str, dict[str, object]]:
    """Arms of a case, in the order of its table."""
    return {"captions": ARMS, "injection": INJECTION_ARMS, "grammar": GRAMMAR_ARMS}[case]


def run_config(arm: str, seed: int, *, quick: bool, case: str = "captions") -> OptimusConfig:
    """Options of one run: the same for all but for the arm's own and the seed."""
    options = {**arms_of(case)[arm], **(_QUICK if quick else {}), "seed": seed}
    if case == "grammar":
        return dataclasses.replace(preset("grammar"), device="cpu", **options)  # type: ignore[arg-type]
    data, valid = captions()
    return dataclasses.replace(BASE, data=data, valid=valid, **options)  # type: ignore[arg-type]


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
    figures = result.evaluation.figures
    said = {}
    if figures.analogies is not None:
        said = {name: float(getattr(figures.analogies, field)) for field, name in ANALOGIES.items()}
        said |= {f"{factor} right": hits for factor, hits in figures.analogies.by_factor.items()}
    return {**said, **{name: float(getattr(figures.language, field)) for field, name in METRICS.items()}}


def finished(figures: Figures) -> set[tuple[str, int]]:
    """Arm and seed of the runs that need not be run again: those whose last figure is there."""
    return {
        (arm, seed)
        for metric in (LAST, DIVERGED)
        for arm, by_seed in figures.by_arm(metric).items()
        for seed in by_seed
    }


def run_all(setting: Setting, seeds: int, path: Path, *, quick: bool, case: str, console: Console) -> None:
    """Do the runs that the results file lacks, seed by seed, and append each when it has ended."""
    runs = [(arm, seed) for seed in range(seeds) for arm in rotation(tuple(arms_of(case)), seed)]
    done = finished(Figures(read(path), setting))
    left = [run for run in runs if run not in done]
    append(path, [])  # a file that cannot be written is better found now than after the first run
    for number, (arm, seed) in enumerate(left, start=1):
        figures = run_once(arm, run_config(arm, seed, quick=quick, case=case))
        today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        append(path, [Row(setting, arm, seed, name, value, today) for name, value in figures.items()])
        said = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        console.print(f"{number}/{len(left)} seed {seed} {arm}: {said}", markup=False, highlight=False)


def make_setting(*, quick: bool, case: str) -> Setting:
    """What all runs of this call share."""
    revision, dirty = machine.commit()
    config = run_config(next(iter(arms_of(case))), 0, quick=quick, case=case)
    versions = [machine.package_version(name) for name in ("fq-toolkit", "transformers", "tokenizers")]
    return Setting(
        preset=f"{case}-quick" if quick else case,
        steps=config.steps,
        samples=config.eval_sentences,
        commit=revision,
        dirty=dirty,
        machine=machine.machine_name("cpu"),
        device="cpu",
        threads=torch.get_num_threads(),
        data="grammar" if case == "grammar" else "captions",
        options=sizes(config),
        versions=", ".join(
            [*filter(None, versions), f"torch {torch.__version__}", platform.python_version()]
        ),
    )


def sizes(config: OptimusConfig) -> str:
    """What a reader of a row has to know of the networks and the sentences."""
    first = f", first {config.limit} sentences" if config.limit else ""
    return (
        f"{config.layers} layers x {config.width}, latent {config.latent_size}{first}, init {config.init_std}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; returns the exit status."""
    command = argparse.ArgumentParser(prog="python -m benchmarks.studies.optimus", description=__doc__)
    command.add_argument("--case", choices=("captions", "injection", "grammar"), default="captions")
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
        name = f"study_optimus-{options.case}-{machine.machine_name('cpu')}.csv"
        path = options.results or (Path(scratch) if options.quick else results.DIRECTORY) / name
        code = 0
        try:
            if not options.report:
                seeds = 1 if options.quick else options.seeds
                setting = make_setting(quick=options.quick, case=options.case)
                run_all(setting, seeds, path, quick=options.quick, case=options.case, console=console)
        except (Stopped, KeyboardInterrupt) as error:
            console.print(f"stopped ({error}): the run in progress is not counted; call again to go on")
            code = 130
        except (ConfigError, RunError) as error:
            sys.stderr.write(f"{error}\n")
            return 2
        rows = read(path)
        if rows:
            figures = Figures(rows, rows[-1].setting)
            arms = tuple(arms_of(options.case))
            console.print(table(figures, arms), markup=False, highlight=False, soft_wrap=True)
            plot(figures, arms, path.with_suffix(".png"))
    return code


if __name__ == "__main__":
    sys.exit(main())
