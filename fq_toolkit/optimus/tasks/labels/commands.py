"""The commands for label-conditional runs."""

import sys
from pathlib import Path

import torch

from fq_toolkit.optimus.tasks.classification.commands import classify_command, plot_latents_command
from fq_toolkit.optimus.tasks.command_line import (
    check_seed,
    run_evaluate_command,
    run_training_command,
    suit_the_data,
    user_errors,
)
from fq_toolkit.optimus.tasks.labels.training import LABEL_TRAINER, LabelConfig
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

TRAIN_HELP = """Train a sentence VAE with labels: the decoder reads the sum of latent and label embedding.

With no options: the embedded grammar with its sentiment. --data takes a table LABEL-tab-TEXT (.tsv), JSON
lines (.jsonl), a folder of STEM.PART.LABEL files, or the beginning of the names of one file per label. At its
end a run measures whether sentences have the label that was asked for, BLEU and self-BLEU."""


def train_command(arguments: list[str]) -> int:
    """Run ``train optimus --task label-conditional``."""
    return run_training_command(
        LABEL_TRAINER,
        arguments,
        defaults=lambda words: suit_the_data(LabelConfig(), words),
        description=TRAIN_HELP,
    )


def evaluate_command(run: Path, arguments: list[str]) -> int:
    """Run ``evaluate RUN``."""
    tyro = require("tyro", purpose="the command line")

    def evaluate(
        valid: str | None = None,
        text_key: str | None = None,
        label_key: str | None = None,
        checkpoint: str = "last",
    ) -> int:
        """Measure a run: right labels, BLEU, self-BLEU; writes evaluation.json.

        Args:
            valid: Other sentences than the run's own; their figures go to evaluation-STEM-HASH.json.
            text_key: Where the text is in a JSON line of these; as in the run by default, like the next.
            label_key: Where the label is.
            checkpoint: best (the most right labels), last, or a step.
        """
        return run_evaluate_command(
            LABEL_TRAINER,
            run,
            checkpoint=checkpoint,
            valid=valid,
            keys={"text_key": text_key, "label_key": label_key},
        )

    return int(tyro.cli(evaluate, args=arguments, prog="fq-toolkit evaluate RUN"))


def sample_command(run: Path, arguments: list[str]) -> int:
    """Run ``sample RUN``."""
    tyro = require("tyro", purpose="the command line")

    def sample(
        count: int = 5,
        labels: tuple[str, ...] = (),
        seed: int = 0,
        max_new_tokens: int = 40,
        checkpoint: str = "last",
    ) -> int:
        """Write sentences with each label, from the same latents.

        Args:
            count: Latents.
            labels: Which labels; all by default.
            seed: Of the latents.
            max_new_tokens: Longest sentence.
            checkpoint: best (the most right labels), last, or a step.
        """
        check_seed(seed)
        task, _ = load_task(LABEL_TRAINER, run, checkpoint=parse_checkpoint(checkpoint))
        names = task.evaluator.corpus.names
        wrong = [label for label in labels if label not in names]
        if wrong or count < 1:
            raise ConfigError(
                f"labels {', '.join(wrong) or 'fit'} and count is {count}; known labels: {', '.join(names)}, "
                "count at least 1"
            )
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(count, task.vae.base.latent_size, generator=generator).to(task.vae.base.device)
        for name in labels or names:
            wanted = torch.full((count,), names.index(name))
            with user_errors():
                texts = task.vae.write(z, wanted, max_new_tokens=max_new_tokens)
            sys.stdout.write("".join(f"{name}\t{text}\n" for text in texts))
        return 0

    return int(tyro.cli(sample, args=arguments, prog="fq-toolkit sample RUN"))


def plot_command(run: Path, arguments: list[str]) -> int:
    """Run ``plot RUN``."""
    return run_plot_command(LABEL_TRAINER, run, arguments)
