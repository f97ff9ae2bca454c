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
import json
import math
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console

from benchmarks import machine, results
from benchmarks.studies.panels import Panel, diverged, draw
from benchmarks.studies.results import DIVERGED, Figures, Setting, read
from benchmarks.studies.runs import Stopped, exit_code, run_missing, setting_here
from benchmarks.studies.statistics import Interval, differences, student_interval
from fq_toolkit.prevalent.model.speaker import Speaker
from fq_toolkit.prevalent.tasks.pretraining.config import PretrainingConfig
from fq_toolkit.prevalent.tasks.pretraining.training import PRETRAINER
from fq_toolkit.prevalent.tasks.r2r.config import R2RConfig
from fq_toolkit.prevalent.tasks.r2r.data import load_r2r_data
from fq_toolkit.prevalent.tasks.r2r.training import R2R_TRAINER
from fq_toolkit.prevalent.tasks.speaker.augment import augment_records
from fq_toolkit.prevalent.tasks.speaker.config import SpeakerConfig
from fq_toolkit.prevalent.tasks.speaker.training import SPEAKER_TRAINER
from fq_toolkit.training.atomic import write_atomic
from fq_toolkit.training.errors import DivergedError
from fq_toolkit.training.session import Trainer, train

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
COLUMNS = ("SR unseen", LAST, "nDTW unseen", "SR seen", "NE unseen", "CPU seconds")
PANELS = tuple(Panel(metric, 100) for metric in COLUMNS[:2])
_PERCENT = ("SR", "SPL", "nDTW", "OSR")
Config = TypeVar("Config", PretrainingConfig, SpeakerConfig, R2RConfig)
_SEEDS = 8
_QUICK_SIZES = {"scans": 4, "train_items": 40, "validation_items": 10, "steps": 4}


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
                raise Stopped(result.signal)
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
    """Return the options of one run, which differ between arms of a seed only in what the arm is about."""
    options: dict[str, object] = {**ARMS[arm]}
    if arm != SCRATCH:
        options["pretrained"] = pieces.pretrained(seed)
    if arm == SPEAKER:
        options["augmented"] = pieces.augmented(seed)
    return dataclasses.replace(pieces.config(pieces.fine_tuning, seed), **options)  # type: ignore[arg-type]


def run_once(pieces: Pieces, arm: str, seed: int) -> dict[str, float]:
    """Train one arm with one seed; returns metric -> value, `LAST` last.

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
        raise Stopped(result.signal or signal.SIGINT)
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


def runs_of(arms: Sequence[str], seeds: int) -> list[tuple[str, int]]:
    """Return arm and seed of every run, seed by seed; the arms of `LATER` when all others are done."""
    first = [(arm, seed) for seed in range(seeds) for arm in arms if arm not in LATER]
    return first + [(arm, seed) for seed in range(seeds) for arm in arms if arm in LATER]


def make_setting(*, steps: int, small: bool) -> Setting:
    """Return what all runs of this call share."""
    sizes = quick(FINE_TUNING) if small else dataclasses.replace(FINE_TUNING, steps=steps)
    return setting_here(
        preset="mini-quick" if small else "mini",
        steps=sizes.steps,
        samples=sizes.validation_items,
        data="MiniWorld",
    )


def span(found: Interval, scale: float) -> str:
    """Return a mean and, with several seeds, its 95 % interval."""
    if found.seeds < 2 or math.isinf(found.low):
        return f"{scale * found.mean:.1f}"
    return f"{scale * found.mean:.1f} ({scale * found.low:.1f} to {scale * found.high:.1f})"


def cell(metric: str, by_seed: Mapping[int, float]) -> str:
    """Return a figure of an arm."""
    if not by_seed:
        return "–"
    scale = 100 if metric.startswith(_PERCENT) else 1
    return span(student_interval(list(by_seed.values())), scale)


def table(figures: Figures, arms: Sequence[str]) -> str:
    """Return arms by metrics as markdown: means with 95 % intervals; SR, SPL and nDTW in percent."""
    head = [*COLUMNS, f"SR unseen minus {PRETRAINED}", "seeds"]
    lines = [f"| | {' | '.join(head)} |", f"|---|{'---|' * len(head)}"]
    by_metric = {name: figures.by_arm(name) for name in COLUMNS}
    base = by_metric["SR unseen"].get(PRETRAINED, {})
    for arm in arms:
        found = by_metric["SR unseen"].get(arm, {})
        if not found:
            continue
        paired = list(differences(base, found).values()) if arm != PRETRAINED else []
        gap = span(student_interval(paired), 100) if paired else ""
        cells = [cell(name, by_metric[name].get(arm, {})) for name in COLUMNS]
        lines.append(f"| {arm} | {' | '.join(cells)} | {gap} | {len(found)} |")
    lines += diverged(figures)
    return "\n".join(lines)


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
        pieces = Pieces(work, steps=options.steps, small=options.quick)

        def study() -> None:
            setting = make_setting(steps=options.steps, small=options.quick)
            runs = runs_of(options.arms, 1 if options.quick else options.seeds)
            run_missing(setting, runs, path, partial(run_once, pieces), console, last=LAST)

        code = 0 if options.report else exit_code(study, console)
        rows = read(path)
        if rows:
            figures = Figures(rows, rows[-1].setting)
            console.print(table(figures, tuple(ARMS)), markup=False, highlight=False, soft_wrap=True)
            picture = path.with_suffix(".png")
            draw(figures, tuple(ARMS), PANELS, picture, samples="instructions in unseen worlds")
    return code


if __name__ == "__main__":
    sys.exit(main())
