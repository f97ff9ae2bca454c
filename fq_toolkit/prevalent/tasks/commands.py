"""``evaluate`` and ``navigate`` for runs of agents: a checkpoint, measured again or watched."""

import sys
from pathlib import Path
from typing import Any

from fq_toolkit.prevalent.metrics.command import data_errors
from fq_toolkit.training.errors import require
from fq_toolkit.training.session import Trainer
from fq_toolkit.training.storage.measured_data import check_measured, measured_line


def run_evaluate_command(trainer: Trainer[Any], run: Path, arguments: list[str]) -> int:
    """Run ``evaluate RUN``."""
    tyro = require("tyro", purpose="the command line")

    def evaluate(step: int | None = None) -> int:
        """Measure a run again; writes predictions-SPLIT.json in the submission format and evaluation.json.

        Args:
            step: Which checkpoint; the newest by default.
        """
        from fq_toolkit.prevalent.tasks.runs import load_navigator

        trained = load_navigator(trainer, run, step=step)
        check_measured(trained.folder.checkpoints(), trained.step, trained.task.measured_on())
        trained.task.evaluate()
        trained.task.write_results(trained.folder, step=trained.step)
        said = f"{trained.task.last_evaluation}\n{measured_line(trained.folder)}"
        sys.stdout.write(f"step {trained.step}\n{said}")
        return 0

    with data_errors():
        return int(tyro.cli(evaluate, args=arguments, prog="fq-toolkit evaluate RUN"))


def run_navigate_command(trainer: Trainer[Any], run: Path, arguments: list[str]) -> int:
    """Run ``navigate RUN``."""
    tyro = require("tyro", purpose="the command line")

    def navigate(
        item: str | None = None,
        split: str = "val_unseen",
        instruction: str | None = None,
        step: int | None = None,
        out: Path | None = None,
    ) -> int:
        """Follow one instruction step by step; draw the way as seen from above.

        Args:
            item: Name of the instruction, dialog turn or request; the first of the split by default.
            split: train, val_seen or val_unseen.
            instruction: Follow these words instead of the annotated ones.
            step: Which checkpoint; the newest by default.
            out: The PNG; by default navigate-ITEM.png in the run folder.
        """
        from fq_toolkit.prevalent.tasks.navigate import choose_item, narrate, walk
        from fq_toolkit.prevalent.tasks.runs import load_navigator
        from fq_toolkit.prevalent.tasks.top_view import draw_top_view

        trained = load_navigator(trainer, run, step=step)
        place, task = choose_item(trained.task, split, item)
        if instruction is not None:
            task = task._replace(instruction=instruction)
        journey = walk(trained.task, place, task)
        sys.stdout.write(narrate(journey))
        target = out or run / f"navigate-{task.instr_id}.png"
        draw_top_view(journey, target)
        sys.stdout.write(f"{target}\n")
        return 0

    with data_errors():
        return int(tyro.cli(navigate, args=arguments, prog="fq-toolkit navigate RUN"))
