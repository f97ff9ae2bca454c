"""``evaluate`` and ``navigate`` for runs of agents: a checkpoint, measured again or watched."""

import sys
from pathlib import Path
from typing import Any

from fq_toolkit.training.errors import require
from fq_toolkit.training.session import Trainer
from fq_toolkit.training.storage.best import parse_checkpoint


def run_evaluate_command(trainer: Trainer[Any], run: Path, arguments: list[str]) -> int:
    """Run ``evaluate RUN``."""
    tyro = require("tyro", purpose="the command line")

    def evaluate(
        split: str | None = None,
        annotations: Path | None = None,
        features: Path | None = None,
        checkpoint: str = "last",
    ) -> int:
        """Measure a run again; writes predictions-SPLIT.json in the submission format and evaluation.json.

        Args:
            split: Measure on another split of the data folder, test for example; the figures go to
                evaluation-STEM-HASH.json and what is submitted to predictions-STEM-HASH.json.
            annotations: The same for another annotation file.
            features: File of view features for these; by default those of the run.
            checkpoint: best, last, or the step of one.
        """
        return evaluate_navigator(trainer, run, checkpoint, split, annotations, features)

    return int(tyro.cli(evaluate, args=arguments, prog="fq-toolkit evaluate RUN"))


def evaluate_navigator(
    trainer: Trainer[Any],
    run: Path,
    checkpoint: str,
    split: str | None,
    annotations: Path | None,
    features: Path | None,
    **attributes: Any,
) -> int:
    """Measure a run on its own validation splits or on another one, and say so.

    Args:
        trainer: whose run it is.
        run: the folder.
        checkpoint: best, last, or a step.
        split: of the data folder, or None.
        annotations: a file, or None.
        features: of these.
        attributes: of the task, set before it is measured.
    """
    from fq_toolkit.prevalent.tasks.another_split import Another
    from fq_toolkit.prevalent.tasks.runs import evaluate_another, evaluate_run, load_navigator

    another = Another(split, annotations, features)
    asked = another.given
    trained = load_navigator(trainer, run, checkpoint=parse_checkpoint(checkpoint))
    for name, value in attributes.items():
        setattr(trained.task, name, value)
    said = evaluate_another(trained, another) if asked else evaluate_run(trained)
    sys.stdout.write(f"step {trained.step}\n{said}")
    return 0


def run_navigate_command(trainer: Trainer[Any], run: Path, arguments: list[str]) -> int:
    """Run ``navigate RUN``."""
    tyro = require("tyro", purpose="the command line")

    def navigate(
        item: str | None = None,
        split: str = "val_unseen",
        instruction: str | None = None,
        checkpoint: str = "last",
        out: Path | None = None,
    ) -> int:
        """Follow one instruction step by step; draw the way as seen from above.

        Args:
            item: Name of the instruction, dialog turn or request; the first of the split by default.
            split: train, val_seen or val_unseen.
            instruction: Follow these words instead of the annotated ones.
            checkpoint: best, last, or the step of one.
            out: The PNG; by default navigate-ITEM.png in the run folder.
        """
        from fq_toolkit.prevalent.tasks.navigate import choose_item, narrate, walk
        from fq_toolkit.prevalent.tasks.runs import load_navigator
        from fq_toolkit.prevalent.tasks.top_view import draw_top_view

        trained = load_navigator(trainer, run, checkpoint=parse_checkpoint(checkpoint))
        place, task = choose_item(trained.task, split, item)
        if instruction is not None:
            task = task._replace(instruction=instruction)
        journey = walk(trained.task, place, task)
        sys.stdout.write(narrate(journey))
        target = out or run / f"navigate-{task.instr_id}.png"
        draw_top_view(journey, target)
        sys.stdout.write(f"{target}\n")
        return 0

    return int(tyro.cli(navigate, args=arguments, prog="fq-toolkit navigate RUN"))
