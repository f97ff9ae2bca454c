"""The commands for NDH runs: options are read here, the work is done elsewhere."""

from pathlib import Path

from fq_toolkit.prevalent.tasks.commands import run_evaluate_command, run_navigate_command
from fq_toolkit.prevalent.tasks.ndh.config import NDHConfig, preset
from fq_toolkit.training.train_command import first_look, run_plot_command, run_train_command

TRAIN_HELP = """Train an agent on NDH: navigation from dialog history, measured by goal progress.

With no options: dialogs in generated worlds, about a minute on two cores. Start from pretraining with
--pretrained RUN. Real data: --preset cvdn --data FOLDER_OF_NDH_FILES --connectivity FOLDER --features FILE.
The run folder holds predictions in the official submission format."""


def train_command(arguments: list[str]) -> int:
    """Run ``train ndh``."""
    from fq_toolkit.prevalent.tasks.ndh.training import NDH_TRAINER

    def defaults(words: list[str]) -> NDHConfig:
        return preset(first_look(words, "preset").preset or "mini")

    return run_train_command(NDH_TRAINER, arguments, defaults=defaults, description=TRAIN_HELP)


def evaluate_command(run: Path, arguments: list[str]) -> int:
    """Run ``evaluate RUN``."""
    from fq_toolkit.prevalent.tasks.ndh.training import NDH_TRAINER

    return run_evaluate_command(NDH_TRAINER, run, arguments)


def navigate_command(run: Path, arguments: list[str]) -> int:
    """Run ``navigate RUN``."""
    from fq_toolkit.prevalent.tasks.ndh.training import NDH_TRAINER

    return run_navigate_command(NDH_TRAINER, run, arguments)


def plot_command(run: Path, arguments: list[str]) -> int:
    """Run ``plot RUN``."""
    from fq_toolkit.prevalent.tasks.ndh.training import NDH_TRAINER

    return run_plot_command(NDH_TRAINER, run, arguments)
