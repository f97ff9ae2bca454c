"""``evaluate`` for runs of the dialog tasks: the newest checkpoint, measured again."""

import sys
from pathlib import Path
from typing import Any

from fq_toolkit.prevalent.commands import data_errors
from fq_toolkit.training.config import load_config
from fq_toolkit.training.extras import require
from fq_toolkit.training.run_folder import RunFolder
from fq_toolkit.training.session import Trainer, make_accelerator


def run_evaluate_command(trainer: Trainer[Any], run: Path, arguments: list[str]) -> int:
    """Run ``evaluate RUN``."""
    tyro = require("tyro", purpose="the command line")

    def evaluate(step: int | None = None) -> int:
        """Measure a run again; writes predictions-SPLIT.json in the submission format and evaluation.json.

        Args:
            step: Which checkpoint; the newest by default.
        """
        folder = RunFolder.open(run)
        config = load_config(trainer.config_class, folder.config, trainer=trainer.name)
        at, saved = folder.checkpoints().load(step)
        task: Any = trainer.build(config, make_accelerator(config))
        task.load_state(saved["task"])
        task.evaluate()
        task.write_results(folder, step=at)
        sys.stdout.write(f"step {at}\n{task.last_evaluation}\n")
        return 0

    with data_errors():
        return int(tyro.cli(evaluate, args=arguments, prog="fq-toolkit evaluate RUN"))
