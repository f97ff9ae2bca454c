"""The commands for HANNA runs: options are read here, the work is done elsewhere."""

from pathlib import Path

from fq_toolkit.prevalent.tasks.commands import run_evaluate_command, run_navigate_command
from fq_toolkit.prevalent.tasks.hanna.config import HannaConfig, preset
from fq_toolkit.training.train_command import first_look, run_plot_command, run_train_command

TRAIN_HELP = """Train an agent on HANNA: it finds things, and learns when to ask for help.

With no options: requests in generated worlds, about a minute on two cores. Start from pretraining with
--pretrained RUN. Real data: --preset hanna --data FOLDER_OF_HANNA_FILES --connectivity FOLDER --features FILE
--routes R2R_FILES. The run folder holds predictions in the official submission format."""


def train_command(arguments: list[str]) -> int:
    """Run ``train hanna``."""
    from fq_toolkit.prevalent.tasks.hanna.training import HANNA_TRAINER

    def defaults(words: list[str]) -> HannaConfig:
        return preset(first_look(words, "preset").preset or "mini")

    return run_train_command(HANNA_TRAINER, arguments, defaults=defaults, description=TRAIN_HELP)


def evaluate_command(run: Path, arguments: list[str]) -> int:
    """Run ``evaluate RUN``."""
    from fq_toolkit.prevalent.tasks.hanna.training import HANNA_TRAINER

    return run_evaluate_command(HANNA_TRAINER, run, arguments)


def navigate_command(run: Path, arguments: list[str]) -> int:
    """Run ``navigate RUN``."""
    from fq_toolkit.prevalent.tasks.hanna.training import HANNA_TRAINER

    return run_navigate_command(HANNA_TRAINER, run, arguments)


def plot_command(run: Path, arguments: list[str]) -> int:
    """Run ``plot RUN``."""
    from fq_toolkit.prevalent.tasks.hanna.training import HANNA_TRAINER

    return run_plot_command(HANNA_TRAINER, run, arguments)
