"""The commands for runs of agents: options are read here, the work is done elsewhere."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fq_toolkit.prevalent.tasks.another_split import Another
from fq_toolkit.prevalent.tasks.navigate import choose_item, narrate, walk
from fq_toolkit.prevalent.tasks.runs import evaluate_another, evaluate_run, load_navigator
from fq_toolkit.prevalent.tasks.top_view import draw_top_view
from fq_toolkit.training.errors import require
from fq_toolkit.training.session import Trainer
from fq_toolkit.training.storage.best import parse_checkpoint
from fq_toolkit.training.train_command import first_look, run_plot_command, run_train_command


class NavigatorCommands(NamedTuple):
    """What the command line calls with the rest of a line, and for commands on a run with its folder.

    trainer: whose runs they are.
    preset: name -> options.
    description: for ``train NAME --help``.
    """

    trainer: Trainer[Any]
    preset: Callable[[str], Any]
    description: str

    def train(self, arguments: list[str]) -> int:
        """Run ``train NAME``."""
        return run_preset_command(self.trainer, self.preset, arguments, description=self.description)

    def evaluate(self, run: Path, arguments: list[str]) -> int:
        """Run ``evaluate RUN``."""
        tyro = require("tyro", purpose="the command line")

        def evaluate(
            split: str | None = None,
            annotations: Path | None = None,
            features: Path | None = None,
            checkpoint: str = "last",
        ) -> int:
            """Measure a run again; writes evaluation.json, and predictions-SPLIT.json for submission.

            Args:
                split: Measure on another split of the data folder, test for example; the figures go to
                    evaluation-STEM-HASH.json and what is submitted to predictions-STEM-HASH.json.
                annotations: The same for another annotation file.
                features: File of view features for these; by default those of the run.
                checkpoint: best, last, or the step of one.
            """
            return evaluate_navigator(self.trainer, run, checkpoint, Another(split, annotations, features))

        return int(tyro.cli(evaluate, args=arguments, prog="fq-toolkit evaluate RUN"))

    def navigate(self, run: Path, arguments: list[str]) -> int:
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
            trained = load_navigator(self.trainer, run, checkpoint=parse_checkpoint(checkpoint))
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

    def plot(self, run: Path, arguments: list[str]) -> int:
        """Run ``plot RUN``."""
        return run_plot_command(self.trainer, run, arguments)


def run_preset_command(
    trainer: Trainer[Any], preset: Callable[[str], Any], arguments: list[str], *, description: str
) -> int:
    """Run ``train NAME``, where ``--preset`` decides the defaults of all other options.

    Args:
        trainer: which.
        preset: name -> options.
        arguments: words after the trainer's name.
        description: for ``--help``.
    """

    def defaults(words: list[str]) -> Any:
        return preset(first_look(words, "preset").preset or trainer.config_class().preset)

    return run_train_command(trainer, arguments, defaults=defaults, description=description)


def evaluate_navigator(
    trainer: Trainer[Any], run: Path, checkpoint: str, another: Another, **attributes: Any
) -> int:
    """Measure a run on its own validation splits or on another one, and say so.

    Args:
        trainer: whose run it is.
        run: the folder.
        checkpoint: best, last, or a step.
        another: what to measure on in place of the run's own splits.
        attributes: of the task, set before it is measured.
    """
    asked = another.given  # before the data of the run are read
    trained = load_navigator(trainer, run, checkpoint=parse_checkpoint(checkpoint))
    # Decoding is no option of the run: it is chosen anew for each evaluation.
    for name, value in attributes.items():
        setattr(trained.task, name, value)
    report = evaluate_another(trained, another) if asked else evaluate_run(trained)
    sys.stdout.write(f"step {trained.step}\n{report}")
    return 0
