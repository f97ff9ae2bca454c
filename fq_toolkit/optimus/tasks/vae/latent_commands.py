"""The commands that ask the sentence VAE in a run, whichever task trained it."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from fq_toolkit.optimus.model.batch import check_texts
from fq_toolkit.optimus.model.sentence_vae import SentenceVAE
from fq_toolkit.optimus.tasks.command_line import check_seed, checkpoint_or_end, typed_lines, user_errors
from fq_toolkit.optimus.tasks.vae.play import PROMPT, play, unknown_words
from fq_toolkit.optimus.tasks.vae.runs import load_model
from fq_toolkit.training.errors import ConfigError, require

logger = logging.getLogger("fq_toolkit")


def reconstruct_command(run: Path, arguments: list[str]) -> int:
    """Run ``reconstruct RUN [SENTENCE ...]``."""
    tyro = require("tyro", purpose="the command line")

    def reconstruct(
        texts: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
        max_new_tokens: int = 40,
        checkpoint: str | None = None,
    ) -> int:
        """Encode sentences and decode their latents.

        Args:
            texts: Sentences, each in quotes; without any, the lines of the standard input.
            max_new_tokens: Longest answer.
            checkpoint: best, last or a step; by default the model at the end of the run.
        """
        sentences = list(texts) or [line.strip() for line in typed_lines() if line.strip()]
        if not sentences:
            raise ConfigError("no sentence was given, neither as words in quotes nor on the standard input")
        vae = load_vae_for(run, checkpoint, sentences)
        with user_errors():
            back = vae.reconstruct(sentences, max_new_tokens=max_new_tokens)
        sys.stdout.write("".join(f"{a} -> {b}\n" for a, b in zip(sentences, back, strict=True)))
        return 0

    return int(tyro.cli(reconstruct, args=arguments, prog="fq-toolkit reconstruct RUN"))


def interpolate_command(run: Path, arguments: list[str]) -> int:
    """Run ``interpolate RUN A B``."""
    tyro = require("tyro", purpose="the command line")

    def interpolate(
        a: Annotated[str, tyro.conf.Positional],
        b: Annotated[str, tyro.conf.Positional],
        steps: int = 10,
        kind: Literal["linear", "spherical"] = "linear",
        max_new_tokens: int = 40,
        checkpoint: str | None = None,
    ) -> int:
        """Write the sentences on the way from A to B.

        Args:
            a: A sentence, in quotes.
            b: Another one.
            steps: Number of sentences, including those of A and B.
            kind: A straight line, or an arc that keeps the length of the latents.
            max_new_tokens: Longest sentence.
            checkpoint: best, last or a step; by default the model at the end of the run.
        """
        vae = load_vae_for(run, checkpoint, [a, b])
        with user_errors():
            texts = vae.interpolate(a, b, steps, kind=kind, max_new_tokens=max_new_tokens)
        sys.stdout.write("".join(f"{text}\n" for text in texts))
        return 0

    return int(tyro.cli(interpolate, args=arguments, prog="fq-toolkit interpolate RUN"))


def analogy_command(run: Path, arguments: list[str]) -> int:
    """Run ``analogy RUN A B C``."""
    tyro = require("tyro", purpose="the command line")

    def analogy(
        a: Annotated[str, tyro.conf.Positional],
        b: Annotated[str, tyro.conf.Positional],
        c: Annotated[str, tyro.conf.Positional],
        degree: float = 1.0,
        max_new_tokens: int = 40,
        checkpoint: str | None = None,
    ) -> int:
        """Write the sentence that is to C as B is to A.

        Args:
            a: A sentence, in quotes.
            b: What A becomes.
            c: What is to change in the same way.
            degree: How far to go; 0 writes C again.
            max_new_tokens: Longest sentence.
            checkpoint: best, last or a step; by default the model at the end of the run.
        """
        vae = load_vae_for(run, checkpoint, [a, b, c])
        with user_errors():
            text = vae.analogy(a, b, c, degree, max_new_tokens=max_new_tokens)
        sys.stdout.write(f"{text}\n")
        return 0

    return int(tyro.cli(analogy, args=arguments, prog="fq-toolkit analogy RUN"))


def play_command(run: Path, arguments: list[str]) -> int:
    """Run ``play RUN``."""
    tyro = require("tyro", purpose="the command line")

    def session(seed: int = 0, checkpoint: str | None = None) -> int:
        """Type sentences: see what comes back, interpolate, try analogies. /help explains more.

        Args:
            seed: Of /sample.
            checkpoint: best, last or a step; by default the model at the end of the run.
        """
        check_seed(seed)
        vae = load_vae_for(run, checkpoint, [])
        play(vae, typed_lines(), sys.stdout, prompt=PROMPT if sys.stdin.isatty() else "", seed=seed)
        return 0

    return int(tyro.cli(session, args=arguments, prog="fq-toolkit play RUN"))


def load_vae_for(run: Path, checkpoint: str | None, texts: Sequence[str]) -> SentenceVAE:
    """Load the sentence VAE of a run, and warn about words in the texts that it does not know."""
    if texts:
        with user_errors():
            check_texts(texts)
    vae = load_model(run, checkpoint=checkpoint_or_end(checkpoint))
    unknown = sorted({word for text in texts for word in unknown_words(vae, text)})
    if unknown:
        logger.warning("words that the model has never seen: %s", " ".join(unknown))
    return vae
