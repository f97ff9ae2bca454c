"""What the default runs of speaker, NDH and HANNA reach on generated worlds, several seeds.

Agents from scratch, agents from the default pretraining of the same seed, and what is possible without
learning: staying, walking at random, and the shortest path.

    python -m benchmarks.studies.navigation_tasks            # 3 seeds; a row per run and figure
    python -m benchmarks.studies.navigation_tasks --report   # the table again, from the results
    python -m benchmarks.studies.navigation_tasks --quick    # does it work: few steps, nothing written

Each seed has its own weights and its own buildings; val_unseen are other buildings still. A stopped
study goes on with the same command; a seed whose pretrained agents are missing pretrains once more.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import machine
from benchmarks.results import DIRECTORY
from benchmarks.studies.results import Figures, Row, Setting, read
from benchmarks.studies.runs import exit_code, run_missing, setting_here
from benchmarks.studies.statistics import student_interval
from fq_toolkit.prevalent.tasks.baselines import baseline_records
from fq_toolkit.prevalent.tasks.hanna import config as hanna_config
from fq_toolkit.prevalent.tasks.hanna.training import HANNA_TRAINER
from fq_toolkit.prevalent.tasks.ndh import config as ndh_config
from fq_toolkit.prevalent.tasks.ndh.training import NDH_TRAINER
from fq_toolkit.prevalent.tasks.pretraining.config import PretrainingConfig
from fq_toolkit.prevalent.tasks.pretraining.training import PRETRAINER
from fq_toolkit.prevalent.tasks.speaker import config as speaker_config
from fq_toolkit.prevalent.tasks.speaker.training import SPEAKER_TRAINER
from fq_toolkit.training.errors import RunError
from fq_toolkit.training.session import Trainer, make_accelerator, train

TASKS = ("ndh", "hanna")
STAYING, RANDOM, SHORTEST = "staying", "random walk", "shortest path"
SCRATCH, PRETRAINED = "scratch", "pretrained"
STARTS = (STAYING, RANDOM, SCRATCH, PRETRAINED, SHORTEST)
# Beside the default number of updates, one after which agents from scratch have caught up.
LONG = {"ndh": 700}
ARMS = (
    *(f"{task}, {start}" for task in TASKS for start in STARTS),
    *(f"{task}, {start}, {steps} updates" for task, steps in LONG.items() for start in (SCRATCH, PRETRAINED)),
    "speaker",
)
LAST = "updates"
CPU = "CPU seconds"
QUICK: dict[str, Any] = {"steps": 2, "batch_size": 4, "scans": 1, "train_items": 8, "validation_items": 4}


def results_file() -> Path:
    """Return the results file of this machine."""
    return DIRECTORY / f"study_navigation_tasks-{machine.machine_name('cpu')}.csv"


def make_setting() -> Setting:
    """Return what all runs of this call share."""
    return setting_here(
        preset="mini",
        steps=0,  # each trainer's default
        samples=0,  # each trainer's default
        data="MiniWorld",
    )


def split_arm(arm: str) -> tuple[str, str, dict[str, Any]]:
    """Return the trainer of an arm, what its agent starts from, and options beside the default ones."""
    task, start, length = (*arm.split(", "), "", "")[:3]
    return task, start, {"steps": LONG[task]} if length else {}


def trainer_of(task: str) -> tuple[Trainer[Any], Any]:
    """Return a trainer and its default options."""
    trainers: dict[str, tuple[Trainer[Any], Any]] = {
        "speaker": (SPEAKER_TRAINER, speaker_config.preset("mini")),
        "ndh": (NDH_TRAINER, ndh_config.preset("mini")),
        "hanna": (HANNA_TRAINER, hanna_config.preset("mini")),
    }
    return trainers[task]


def pretrain(seed: int, folder: Path, *, quick: bool) -> Path:
    """Return the run folder of the default pretraining of a seed, in the worlds of that seed."""
    run = folder / f"pretrained-{seed}"
    if not run.exists():
        less: dict[str, Any] = {**QUICK, "eval_steps": 8} if quick else {}
        config = PretrainingConfig(seed=seed, world_seed=seed, device="cpu", fine_tune=False, **less)
        if train(PRETRAINER, config, out=run).evaluation is None:
            raise RunError(f"the pretraining of seed {seed} was stopped; call again to go on")
    return run


def run_once(arm: str, seed: int, folder: Path, *, quick: bool) -> dict[str, float]:
    """Train or walk one arm and return its figures.

    Args:
        arm: one of `ARMS`.
        seed: of weights and worlds.
        folder: for run folders; the pretraining of a seed is kept there for its other arms.
        quick: a few steps only.
    """
    task, start, options = split_arm(arm)
    trainer, base = trainer_of(task)
    options |= {"seed": seed, "world_seed": seed, "device": "cpu", **(QUICK if quick else {})}
    if start == PRETRAINED:
        options["pretrained"] = str(pretrain(seed, folder, quick=quick))
    config = dataclasses.replace(base, **options)
    began = time.process_time()
    if start in (STAYING, RANDOM, SHORTEST):
        found, updates = baseline(trainer, config, start), 0
    else:
        done = train(trainer, config, out=folder / f"{arm}-{seed}".replace(", ", "-"))
        found, updates = done.evaluation, done.step
    if found is None:
        raise RunError(f"{arm}, seed {seed} was stopped; call again to go on")
    return {**figures_of(task, found), CPU: time.process_time() - began, LAST: float(updates)}


def baseline(trainer: Trainer[Any], config: Any, name: str) -> Any:
    """Return the evaluation of an agent that learns nothing."""
    task: Any = trainer.build(config, make_accelerator(config))
    return task.report(
        {
            split.name: task.score(split, baseline_records(name, split, max_steps=config.max_steps))
            for split in task.validation.values()
        },
        {name: len(split.items) for name, split in task.validation.items()},
    )


def figures_of(task: str, found: Any) -> dict[str, float]:
    """Return the figures of an evaluation, by split and score."""
    if task == "speaker":
        return {f"{name} BLEU": score for name, score in found.bleu.items()}
    wanted = ("GP", "SR", "SPL", "OPSR") if task == "ndh" else ("SR", "SPL", "NE", "requests")
    figures = {
        f"{name} {key}": getattr(scores, key) for name, scores in found.scores.items() for key in wanted
    }
    if task == "hanna":
        for name, scores in found.without_help.items():
            figures |= {f"{name} SR without help": scores.SR, f"{name} SPL without help": scores.SPL}
    return figures


SHOWN = (
    ("GP m", "val_unseen GP", 1.0), ("SR %", "val_unseen SR", 100.0), ("SPL %", "val_unseen SPL", 100.0),
    ("requests", "val_unseen requests", 1.0), ("SR % without help", "val_unseen SR without help", 100.0),
    ("BLEU", "val_unseen BLEU", 1.0), (CPU, CPU, 1.0),
)  # fmt: skip


def summary(rows: Sequence[Row]) -> str:
    """Return the table of the docs: figures of unseen buildings in the newest setting, a row per arm."""
    if not rows:
        return ""
    setting = rows[-1].setting
    figures = Figures(rows, setting)
    lines = [
        f"commit {setting.commit}, {setting.machine}, {setting.threads} thread",
        "",
        f"| arm | {' | '.join(name for name, _, _ in SHOWN)} | seeds |",
        "|" + "---|" * (len(SHOWN) + 2),
    ]
    for arm in ARMS:
        seeds = figures.by_arm(LAST).get(arm, {})
        if not seeds:
            continue
        cells = []
        for _, metric, factor in SHOWN:
            values = [factor * value for value in figures.by_arm(metric).get(arm, {}).values()]
            if not values:
                cells.append("")
                continue
            one = student_interval(values)
            spread = "" if math.isinf(one.low) else f" ({one.low:.1f} to {one.high:.1f})"
            cells.append(f"{one.mean:.1f}{spread}")
        lines.append(f"| {arm} | {' | '.join(cells)} | {len(seeds)} |")
    return "\n".join(lines)


def report(rows: Sequence[Row]) -> str:
    """Return a table of means over seeds with 95 % intervals for each setting."""
    lines = []
    for setting in dict.fromkeys(row.setting for row in rows):
        figures = Figures(rows, setting)
        state = " (modified)" if setting.dirty else ""
        lines += [
            f"commit {setting.commit}{state}, {setting.machine}, {setting.threads} threads, "
            f"{setting.versions}",
            "",
            "| arm | figure | mean | 95 % interval | seeds |",
            "|---|---|---|---|---|",
        ]
        for arm in ARMS:
            for metric in figures.values:
                values = list(figures.by_arm(metric).get(arm, {}).values())
                if values:
                    one = student_interval(values)
                    spread = "one seed" if math.isinf(one.low) else f"{one.low:.3g} .. {one.high:.3g}"
                    lines.append(f"| {arm} | {metric} | {one.mean:.3g} | {spread} | {one.seeds} |")
        lines.append("")
    return "\n".join(lines) or "no run has ended yet\n"


def main(words: Sequence[str] | None = None) -> int:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies.navigation_tasks", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--threads", type=int, default=None, help="by default every core")
    parser.add_argument("--quick", action="store_true", help="a few steps, nothing written")
    parser.add_argument("--report", action="store_true", help="only the tables")
    arguments = parser.parse_args(words)
    torch.set_num_threads(arguments.threads or machine.core_count())
    console = Console(width=None if sys.stdout.isatty() else 120)
    runs = [(arm, seed) for seed in range(arguments.seeds) for arm in arguments.arms]
    code = 0
    with tempfile.TemporaryDirectory(prefix="study-") as folder:
        path = Path(folder) / "quick.csv" if arguments.quick else results_file()
        run = partial(run_once, folder=Path(folder), quick=arguments.quick)
        if not arguments.report:
            code = exit_code(
                lambda: run_missing(make_setting(), runs, path, run, console, last=LAST),
                console,
                kept=not arguments.quick,
            )
    if not arguments.quick:
        rows = read(path)
        sys.stdout.write(f"{summary(rows)}\n\n{report(rows)}")
    return code


if __name__ == "__main__":
    sys.exit(main())
