"""Does pretraining help a navigation agent, and must it read and see?

``python -m benchmarks.studies.prevalent``.

Trains followers in generated worlds and scores them in unseen ones: from scratch, from pretraining, with
instructions of a speaker, with shuffled instructions, and blind. All arms of a seed share worlds, paths,
order and number of updates; every seed has its own worlds. A run that has ended is in the results file and is
not run again; the pretraining and the speaker of a seed are kept in the work folder. So the study can be
stopped, and goes on when called again.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console

from benchmarks import machine, results
from benchmarks.studies.prevalent_report import plot, table
from benchmarks.studies.results import DIVERGED, Figures, Row, Setting, append, read
from fq_toolkit.prevalent.model.speaker import Speaker
from fq_toolkit.prevalent.tasks.pretraining.config import PretrainingConfig
from fq_toolkit.prevalent.tasks.pretraining.training import PRETRAINER
from fq_toolkit.prevalent.tasks.r2r.config import R2RConfig
from fq_toolkit.prevalent.tasks.r2r.data import load_r2r_data
from fq_toolkit.prevalent.tasks.r2r.training import R2R_TRAINER
from fq_toolkit.prevalent.tasks.speaker.augment import augment_records
from fq_toolkit.prevalent.tasks.speaker.config import SpeakerConfig
from fq_toolkit.prevalent.tasks.speaker.training import SPEAKER_TRAINER
from fq_toolkit.training.errors import ConfigError, DivergedError, RunError
from fq_toolkit.training.session import Trainer, train
from fq_toolkit.training.storage.atomic import write_atomic

SCRATCH, PRETRAINED, SPEAKER = "scratch", "pretrained", "pretrained + speaker"
SHUFFLED, BLIND = "pretrained, shuffled instructions", "pretrained, blind"
# Pretrained layers learn at a third of the rate of fresh ones. Neither rate was searched for.
_KEEP: dict[str, object] = {"model_lr": 1e-3}
# Arm -> the options by which it differs from FINE_TUNING; the last ones are done when all others are.
ARMS: dict[str, dict[str, object]] = {
    SCRATCH: {},
    PRETRAINED: _KEEP,
    SHUFFLED: {**_KEEP, "shuffle_instructions": True},
    BLIND: {**_KEEP, "blind": True},
    SPEAKER: _KEEP,
}
LATER = (SPEAKER,)
# Features of 256 channels outweigh the 128 of the angles, as image features do; of 64 they would not.
PRETRAINING = PretrainingConfig(
    train_items=3000, scans=40, feature_dim=256, action_label="candidate", action_from="words",
    loss_weights=(0.1, 1.0), batch_size=32, steps=900, lr=3e-3, init_std=0.1, intermediate_size=128,
    checkpoint_every=0, evaluate_every=0, fine_tune=False, log_every=100, device="cpu",
)  # fmt: skip
SPEAKING = SpeakerConfig(
    scans=40, feature_dim=256, train_items=300, validation_items=50, checkpoint_every=0, evaluate_every=0,
    log_every=100, device="cpu",
)  # fmt: skip
FINE_TUNING = R2RConfig(
    scans=40, feature_dim=256, train_items=300, validation_items=200, steps=250, model_lr=3e-3,
    cross_modal=False,
    checkpoint_every=0, log_every=50, device="cpu",
)  # fmt: skip
AUGMENTED_PATHS = 1000
LAST = "SPL unseen"
Config = TypeVar("Config", PretrainingConfig, SpeakerConfig, R2RConfig)
_SEEDS = 8
_QUICK_SIZES = {"scans": 4, "train_items": 40, "validation_items": 10, "steps": 4}


class Stopped(Exception):
    """A signal ended a run before its last step."""


def quick(config: Config) -> Config:
    """Return options of a run that only shows whether everything works."""
    return dataclasses.replace(config, **_QUICK_SIZES)  # type: ignore[arg-type]


class Pieces:
    """What several arms of a seed share, made once and kept in the work folder.

    Args:
        work: the folder.
        steps: updates of fine-tuning.
        small: whether only to try that everything works.
    """

    def __init__(self, work: Path, *, steps: int, small: bool) -> None:
        self.work, self.small = work, small
        self.fine_tuning = dataclasses.replace(FINE_TUNING, steps=steps)

    def config(self, base: Config, seed: int) -> Config:
        """Return the options of a seed: weights, order and worlds."""
        return dataclasses.replace(quick(base) if self.small else base, seed=seed, world_seed=seed)

    def _run(self, name: str, trainer: Trainer[Any], base: Any, seed: int) -> Path:
        """Return the folder of a finished run; one that was cut short is done again."""
        folder = self.work / f"{name}-{seed}"
        if not (folder / "evaluation.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            result = train(trainer, self.config(base, seed), out=folder)
            if result.signal is not None:
                raise Stopped(signal.Signals(result.signal).name)
        return folder

    def pretrained(self, seed: int) -> str:
        """Return the run of the pretraining."""
        return str(self._run("pretraining", PRETRAINER, PRETRAINING, seed))

    def augmented(self, seed: int) -> str:
        """Return the file of what a speaker, trained on the same items as the agent, says of new paths."""
        path = self.work / f"augmented-{seed}.json"
        if not path.exists():
            run = self._run("speaker", SPEAKER_TRAINER, SPEAKING, seed)
            data = load_r2r_data(self.config(self.fine_tuning, seed))
            speaker = Speaker.from_pretrained(run)
            records = augment_records(
                data.train.world,
                data.train.features,
                speaker,
                20 if self.small else AUGMENTED_PATHS,
                seed,
                held_out=[item for split in data.validation.values() for item in split.items],
            )
            write_atomic(path, json.dumps(records).encode())
        return str(path)


def run_config(pieces: Pieces, arm: str, seed: int) -> R2RConfig:
    """Options of one run: the same for all arms of a seed but for what the arm is about."""
    options: dict[str, object] = {**ARMS[arm]}
    if arm != SCRATCH:
        options["pretrained"] = pieces.pretrained(seed)
    if arm == SPEAKER:
        options["augmented"] = pieces.augmented(seed)
    return dataclasses.replace(pieces.config(pieces.fine_tuning, seed), **options)  # type: ignore[arg-type]


def run_once(pieces: Pieces, arm: str, seed: int) -> dict[str, float]:
    """Train one arm with one seed; returns metric -> value, :data:`LAST` last.

    Raises:
        Stopped: when a signal came.
    """
    config = run_config(pieces, arm, seed)
    began = time.process_time()
    with tempfile.TemporaryDirectory(prefix="study-prevalent-") as folder:
        try:
            result = train(R2R_TRAINER, config, out=Path(folder) / "run")
        except DivergedError:
            return {DIVERGED: 1.0}
    if result.signal is not None or result.evaluation is None:
        raise Stopped(signal.Signals(result.signal or signal.SIGINT).name)
    seen, unseen = (result.evaluation.scores[name] for name in ("val_seen", "val_unseen"))
    return {
        "CPU seconds": time.process_time() - began,
        "SR seen": seen.SR,
        "SPL seen": seen.SPL,
        "NE unseen": unseen.NE,
        "nDTW unseen": unseen.nDTW,
        "OSR unseen": unseen.OSR,
        "SR unseen": unseen.SR,
        LAST: unseen.SPL,
    }


def finished(figures: Figures) -> set[tuple[str, int]]:
    """Arm and seed of the runs that need not be run again: those whose last figure is there."""
    return {
        (arm, seed)
        for metric in (LAST, DIVERGED)
        for arm, by_seed in figures.by_arm(metric).items()
        for seed in by_seed
    }


def run_all(
    setting: Setting, arms: Sequence[str], seeds: int, pieces: Pieces, path: Path, console: Console
) -> None:
    """Do the runs that the results file lacks, seed by seed, and append each when it has ended."""
    runs = [(arm, seed) for seed in range(seeds) for arm in arms if arm not in LATER]
    runs += [(arm, seed) for seed in range(seeds) for arm in arms if arm in LATER]
    done = finished(Figures(read(path), setting))
    left = [run for run in runs if run not in done]
    append(path, [])  # a file that cannot be written is better found now than after the first run
    for number, (arm, seed) in enumerate(left, start=1):
        figures = run_once(pieces, arm, seed)
        today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        append(path, [Row(setting, arm, seed, name, value, today) for name, value in figures.items()])
        said = "  ".join(f"{name} {value:.3g}" for name, value in figures.items())
        console.print(f"{number}/{len(left)} seed {seed} {arm}: {said}", markup=False, highlight=False)


def make_setting(*, steps: int, small: bool) -> Setting:
    """What all runs of this call share."""
    revision, dirty = machine.commit()
    sizes = quick(FINE_TUNING) if small else dataclasses.replace(FINE_TUNING, steps=steps)
    return Setting(
        preset="mini-quick" if small else "mini",
        steps=sizes.steps,
        samples=sizes.validation_items,
        commit=revision,
        dirty=dirty,
        machine=machine.machine_name("cpu"),
        device="cpu",
        threads=torch.get_num_threads(),
        data="MiniWorld",
        versions=f"torch {torch.__version__}, python {platform.python_version()}",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; returns the exit status."""
    command = argparse.ArgumentParser(prog="python -m benchmarks.studies.prevalent", description=__doc__)
    add = command.add_argument
    add("--seeds", type=int, default=_SEEDS, help="seeds 0 to N-1 (default %(default)s)")
    add("--steps", type=int, default=FINE_TUNING.steps, help="updates of every agent (default %(default)s)")
    add("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="default: all")
    add("--quick", action="store_true", help="a few seconds: whether it works, no figures")
    add("--threads", type=int, default=1, help="CPU threads (default %(default)s)")
    add("--report", action="store_true", help="no runs: table and picture of the results file")
    add("--results", type=Path, help="CSV; by default in benchmarks/results/")
    add("--work", type=Path, default=Path("runs/study-prevalent"), help="folder of pretraining and speakers")
    options = command.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        name = f"study_prevalent-{machine.machine_name('cpu')}.csv"
        path = options.results or (Path(scratch) if options.quick else results.DIRECTORY) / name
        work = Path(scratch) / "work" if options.quick else options.work
        code = 0
        try:
            if not options.report:
                pieces = Pieces(work, steps=options.steps, small=options.quick)
                setting = make_setting(steps=options.steps, small=options.quick)
                seeds = 1 if options.quick else options.seeds
                run_all(setting, options.arms, seeds, pieces, path, console)
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
