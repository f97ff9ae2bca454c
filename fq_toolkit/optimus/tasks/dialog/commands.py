"""The commands for dialog runs."""

import sys
from pathlib import Path
from typing import Annotated

import torch

from fq_toolkit.optimus.tasks.classification.commands import classify_command, plot_latents_command
from fq_toolkit.optimus.tasks.command_line import (
    check_seed,
    run_evaluate_command,
    run_training_command,
    suit_the_data,
    user_errors,
)
from fq_toolkit.optimus.tasks.dialog.training import DIALOG_TRAINER, DialogConfig
from fq_toolkit.optimus.tasks.runs import load_task
from fq_toolkit.optimus.tasks.vae.latent_commands import (
    analogy_command,
    interpolate_command,
    play_command,
    reconstruct_command,
)
from fq_toolkit.training.errors import ConfigError, require
from fq_toolkit.training.storage.best import parse_checkpoint
from fq_toolkit.training.train_command import run_plot_command

# Some are those of the sentence VAE within.
__all__ = [
    "analogy_command",
    "classify_command",
    "evaluate_command",
    "interpolate_command",
    "play_command",
    "plot_command",
    "plot_latents_command",
    "reconstruct_command",
    "sample_command",
    "train_command",
]

TRAIN_HELP = """Train a model of dialog responses: contexts and responses share one latent space.

With no options: an embedded corpus of questions whose right answers are all known. --data takes a table
CONTEXT-tab-RESPONSE (.tsv), JSON lines with "context" and "response" (.jsonl), or dialogs, one a line, each
turn ended by __eou__ as in DailyDialog (.txt). At its end a run measures BLEU precision, recall and F1 over
ten responses per context, and how varied they are."""


def train_command(arguments: list[str]) -> int:
    """Run ``train optimus --task dialog``."""
    return run_training_command(
        DIALOG_TRAINER,
        arguments,
        defaults=lambda words: suit_the_data(DialogConfig(), words),
        description=TRAIN_HELP,
    )


def evaluate_command(run: Path, arguments: list[str]) -> int:
    """Run ``evaluate RUN``."""
    tyro = require("tyro", purpose="the command line")

    def evaluate(
        valid: str | None = None,
        checkpoint: str = "last",
    ) -> int:
        """Measure a run: BLEU precision, recall, F1, distinct n-grams; writes evaluation.json.

        Args:
            valid: Other pairs than the run's own; their figures go to evaluation-STEM-HASH.json.
            checkpoint: best (the highest BLEU F1), last, or a step.
        """
        return run_evaluate_command(DIALOG_TRAINER, run, checkpoint=checkpoint, valid=valid)

    return int(tyro.cli(evaluate, args=arguments, prog="fq-toolkit evaluate RUN"))


def sample_command(run: Path, arguments: list[str]) -> int:
    """Run ``sample RUN CONTEXT ...``."""
    tyro = require("tyro", purpose="the command line")

    def sample(
        contexts: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
        count: int = 10,
        seed: int = 0,
        max_new_tokens: int = 40,
        checkpoint: str = "last",
    ) -> int:
        """Write responses to contexts, that of the mean first.

        Args:
            contexts: Each in quotes.
            count: Responses per context.
            seed: Of the latents.
            max_new_tokens: Longest response.
            checkpoint: best (the highest BLEU F1), last, or a step.
        """
        if not contexts or not all(context.strip() for context in contexts) or count < 1:
            raise ConfigError(
                "give at least one context in quotes and a count of at least 1: "
                'fq-toolkit sample RUN "hello ."'
            )
        check_seed(seed)
        task, _ = load_task(DIALOG_TRAINER, run, checkpoint=parse_checkpoint(checkpoint))
        generator = torch.Generator().manual_seed(seed)
        with user_errors():
            answers = task.vae.respond(
                list(contexts), samples=count, generator=generator, max_new_tokens=max_new_tokens
            )
        for context, texts in zip(contexts, answers, strict=True):
            sys.stdout.write("".join(f"{context}\t{text}\n" for text in texts))
        return 0

    return int(tyro.cli(sample, args=arguments, prog="fq-toolkit sample RUN"))


def plot_command(run: Path, arguments: list[str]) -> int:
    """Run ``plot RUN``."""
    return run_plot_command(DIALOG_TRAINER, run, arguments)
