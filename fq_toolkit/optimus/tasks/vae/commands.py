"""The commands of ``train optimus`` and of its runs."""

import sys
from pathlib import Path

import torch

from fq_toolkit.optimus.tasks.command_line import (
    check_seed,
    run_evaluate_command,
    run_training_command,
    suit_the_data,
    user_errors,
)
from fq_toolkit.optimus.tasks.vae.config import OptimusConfig, preset
from fq_toolkit.optimus.tasks.vae.latent_commands import load_vae_for
from fq_toolkit.optimus.tasks.vae.training import VAE_TRAINER
from fq_toolkit.training.errors import ConfigError, require
from fq_toolkit.training.seeding import isolated_rng
from fq_toolkit.training.train_command import first_look, run_plot_command

TRAIN_HELP = """Train a sentence VAE (Optimus): an encoder, a latent, and a decoder that reads it.

With no options: the embedded grammar, a small BERT and GPT-2 from scratch. At its end it prints ten
interpolations, ten analogies and the share of analogies on held-out combinations that are right. The run
folder then holds config.json, metrics.csv, checkpoints/, model/, examples.txt, curves.png and
evaluation.json. Ctrl-C saves; --resume continues bit for bit. --preset captions --data FILE trains on any
file of one sentence per line; --init RUN continues from a trained model, on other sentences; --encoder
bert-base-cased --decoder gpt2 starts from pretrained networks. --task trains one of the other tasks."""


def train_command(arguments: list[str]) -> int:
    """Run ``train optimus``.

    Returns:
        The exit status: 0, or 128 + the number of the signal that stopped the run.
    """
    return run_training_command(VAE_TRAINER, arguments, defaults=_defaults, description=TRAIN_HELP)


def _defaults(arguments: list[str]) -> OptimusConfig:
    """Return the options to start from: those of the preset, fitted to the data."""
    return suit_the_data(preset(first_look(arguments, "preset").preset or "grammar"), arguments)


def evaluate_command(run: Path, arguments: list[str]) -> int:
    """Run ``evaluate RUN``."""
    tyro = require("tyro", purpose="the command line")

    def evaluate(
        valid: str | None = None,
        text_key: str | None = None,
        sentences: int | None = None,
        iw_samples: int | None = None,
        analogies: int | None = None,
        checkpoint: str = "last",
    ) -> int:
        """Measure a run: perplexities, -ELBO, KL, MI, active units, analogies; writes evaluation.json.

        Args:
            valid: Other sentences than the run's own; their figures go to evaluation-STEM-HASH.json.
            text_key: Where the text is in a JSON line of these.
            sentences: Held-out sentences; by default as in the run, like the next two.
            iw_samples: Draws per sentence of the likelihood; the paper has 100.
            analogies: Scored analogies, on the grammar.
            checkpoint: best (the lowest -ELBO), last, or a step.
        """
        if valid is not None and analogies is not None:
            raise ConfigError("--analogies are questions on the grammar: leave them out with --valid")
        return run_evaluate_command(
            VAE_TRAINER,
            run,
            checkpoint=checkpoint,
            valid=valid,
            keys={"text_key": text_key},
            eval_sentences=sentences,
            iw_samples=iw_samples,
            eval_analogies=analogies,
        )

    return int(tyro.cli(evaluate, args=arguments, prog="fq-toolkit evaluate RUN"))


def sample_command(run: Path, arguments: list[str]) -> int:
    """Run ``sample RUN``."""
    tyro = require("tyro", purpose="the command line")

    def sample(
        count: int = 10,
        seed: int = 0,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int = 40,
        checkpoint: str | None = None,
    ) -> int:
        """Write sentences from latents drawn from the prior.

        Args:
            count: Number of sentences.
            seed: Of the latents and, with a temperature, of the words.
            temperature: 0 always takes the likeliest word; 1 draws words with the decoder's probabilities.
            top_p: With a temperature, draw only from the likeliest words with this probability together.
            max_new_tokens: Longest sentence.
            checkpoint: best (the lowest -ELBO), last or a step; by default the model at the end of the run.
        """
        if temperature < 0 or not 0 < top_p <= 1:
            raise ConfigError(
                f"temperature is {temperature} and top_p {top_p}; expected 0 or more, and 0 < top_p <= 1"
            )
        check_seed(seed)
        drawing = {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature else {}
        vae = load_vae_for(run, checkpoint, [])
        with user_errors(), isolated_rng(seed):
            generator = torch.Generator().manual_seed(seed)
            texts = vae.sample(count, generator=generator, max_new_tokens=max_new_tokens, **drawing)
        sys.stdout.write("".join(f"{text}\n" for text in texts))
        return 0

    return int(tyro.cli(sample, args=arguments, prog="fq-toolkit sample RUN"))


def plot_command(run: Path, arguments: list[str]) -> int:
    """Run ``plot RUN``."""
    return run_plot_command(VAE_TRAINER, run, arguments)
