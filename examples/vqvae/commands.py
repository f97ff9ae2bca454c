"""The command line: `train` comes with all options of the configuration, `evaluate` reads a run back."""

import sys
from pathlib import Path

from examples.vqvae.config import VQVAEConfig
from examples.vqvae.training import NAME, TRAINER
from fq_toolkit.training.errors import require
from fq_toolkit.training.runs import open_saved
from fq_toolkit.training.session import make_accelerator
from fq_toolkit.training.storage.best import parse_checkpoint
from fq_toolkit.training.storage.measured_data import check_measured
from fq_toolkit.training.train_command import run_train_command

PROGRAM = "python -m examples.vqvae"


def evaluate(run: Path, checkpoint: str = "last") -> None:
    """Measure a run again.

    Args:
        run: its folder.
        checkpoint: best, last, or a step.
    """
    saved = open_saved(VQVAEConfig, NAME, run, checkpoint=parse_checkpoint(checkpoint))
    task = TRAINER.build(saved.config, make_accelerator(saved.config))
    check_measured(saved.folder.checkpoints(), saved.step, task.measured_on())
    with saved.fitting():
        task.load_state(saved.state)
    task.write(saved.folder, task.evaluate(), step=saved.step, seconds=saved.seconds)
    sys.stdout.write(f"step {saved.step}: {task.last_evaluation}\n")


def main(words: list[str]) -> int:
    """Run `train [options]` or `evaluate RUN [--checkpoint best|last|N]`."""
    if words[:1] == ["train"]:
        return run_train_command(
            TRAINER,
            words[1:],
            defaults=lambda _: VQVAEConfig(),
            description="Train a VQ-VAE on digits.",
            program=f"{PROGRAM} train",
        )
    if words[:1] == ["evaluate"]:
        tyro = require("tyro", purpose="the command line")
        tyro.cli(tyro.conf.configure(tyro.conf.PositionalRequiredArgs)(evaluate), args=words[1:])
        return 0
    sys.stderr.write(f"usage: {PROGRAM} train [options] | evaluate RUN [--checkpoint best|last|N]\n")
    return 2
