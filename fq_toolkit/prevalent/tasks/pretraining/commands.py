"""The commands for runs of the pretraining: options are read here, the work is done elsewhere."""

import sys
from pathlib import Path

from fq_toolkit.prevalent.tasks.commands import run_preset_command
from fq_toolkit.prevalent.tasks.pretraining.config import preset
from fq_toolkit.prevalent.tasks.pretraining.runs import evaluate_run, load_run
from fq_toolkit.prevalent.tasks.pretraining.training import PRETRAINER
from fq_toolkit.training.errors import require
from fq_toolkit.training.storage.best import parse_checkpoint
from fq_toolkit.training.storage.measured_data import measured_line
from fq_toolkit.training.train_command import run_plot_command

TRAIN_HELP = """Pretrain a navigation model: masked words and next actions.

With no options: generated buildings, a small model, and at the end two agents fine-tuned for R2R, one of them
from scratch. The run folder then holds config.json, metrics.csv, checkpoints/, model/, curves.png and
evaluation.json. Ctrl-C saves; --resume goes on bit by bit."""


def train_command(arguments: list[str]) -> int:
    """Run ``train prevalent``."""
    return run_preset_command(PRETRAINER, preset, arguments, description=TRAIN_HELP)


def evaluate_command(run: Path, arguments: list[str]) -> int:
    """Run ``evaluate RUN``."""
    tyro = require("tyro", purpose="the command line")

    def evaluate(steps: int | None = None, checkpoint: str = "last", fine_tune: bool = False) -> int:
        """Measure a run on held-out paths; writes evaluation.json and model/.

        Args:
            steps: Time steps of held-out paths; by default as in the run.
            checkpoint: best, last, or the step of one.
            fine_tune: MiniWorld: also fine-tune an agent for R2R and one from scratch.
        """
        trained = load_run(run, checkpoint=parse_checkpoint(checkpoint))
        result = evaluate_run(trained, limit=steps, fine_tune=fine_tune)
        sys.stdout.write(f"step {trained.step}: {result}\n{measured_line(trained.folder)}")
        return 0

    return int(tyro.cli(evaluate, args=arguments, prog="fq-toolkit evaluate RUN"))


def plot_command(run: Path, arguments: list[str]) -> int:
    """Run ``plot RUN``."""
    return run_plot_command(PRETRAINER, run, arguments)
