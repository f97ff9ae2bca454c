"""The commands for runs of the pretraining: options are read here, the work is done elsewhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fq_toolkit.prevalent.files import DataError
from fq_toolkit.prevalent.tasks.pretraining.config import PretrainingConfig, preset
from fq_toolkit.training.errors import RunError, require
from fq_toolkit.training.storage.measured_data import measured_line
from fq_toolkit.training.train_command import first_look, run_plot_command, run_train_command

TRAIN_HELP = """Pretrain a navigation model: masked words and next actions.

With no options: generated buildings, a small model, and at the end two agents fine-tuned for R2R, one of them
from scratch. The run folder then holds config.json, metrics.csv, checkpoints/, model/, curves.png and
evaluation.json. Ctrl-C saves; --resume goes on bit by bit."""


@contextmanager
def explained() -> Iterator[None]:
    """Turn an unusable data file into an error that the command line prints without a traceback."""
    try:
        yield
    except DataError as error:
        raise RunError(str(error)) from error


def train_command(arguments: list[str]) -> int:
    """Run ``train prevalent``."""
    from fq_toolkit.prevalent.tasks.pretraining.training import PRETRAINER

    def defaults(words: list[str]) -> PretrainingConfig:
        return preset(first_look(words, "preset").preset or "miniworld")

    with explained():
        return run_train_command(PRETRAINER, arguments, defaults=defaults, description=TRAIN_HELP)


def evaluate_command(run: Path, arguments: list[str]) -> int:
    """Run ``evaluate RUN``."""
    tyro = require("tyro", purpose="the command line")

    def evaluate(steps: int | None = None, step: int | None = None, fine_tune: bool = False) -> int:
        """Measure a run on held-out paths; writes evaluation.json and model/.

        Args:
            steps: Time steps of held-out paths; by default as in the run.
            step: Which checkpoint; the newest by default.
            fine_tune: MiniWorld: also fine-tune an agent for R2R and one from scratch.
        """
        from fq_toolkit.prevalent.tasks.pretraining.runs import evaluate_run, load_run

        with explained():
            trained = load_run(run, step=step)
            found = evaluate_run(trained, limit=steps, fine_tune=fine_tune)
            sys.stdout.write(f"step {trained.step}: {found}\n{measured_line(trained.folder)}")
        return 0

    return int(tyro.cli(evaluate, args=arguments, prog="fq-toolkit evaluate RUN"))


def plot_command(run: Path, arguments: list[str]) -> int:
    """Run ``plot RUN``."""
    from fq_toolkit.prevalent.tasks.pretraining.training import PRETRAINER

    return run_plot_command(PRETRAINER, run, arguments)
