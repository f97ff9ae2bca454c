"""The commands for runs of sentence VAEs: options are read here, the work is done elsewhere."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from fq_toolkit.optimus.tasks.classification.commands import classify_command, plot_latents_command
from fq_toolkit.optimus.tasks.command_line import check_keys_of, check_seed, typed_lines, user_errors
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.extras import require
from fq_toolkit.training.storage.measured_data import measured_line
from fq_toolkit.training.storage.run_folder import RunFolder

if TYPE_CHECKING:
    from fq_toolkit.optimus.model.sentence_vae import SentenceVAE

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

logger = logging.getLogger("fq_toolkit")


TextWords = tuple[str, ...]


def train_command(arguments: list[str]) -> int:
    """Run ``train optimus [--task TASK]``.

    Returns:
        The exit status of the task's own command.
    """
    from fq_toolkit.optimus.tasks.choose import split_task, task_commands

    task, rest = split_task(arguments)
    return int(task_commands(task).train_command(rest))


def evaluate_command(run: Path, arguments: list[str]) -> int:
    """Run ``evaluate RUN``."""
    tyro = require("tyro", purpose="the command line")

    def evaluate(
        valid: str | None = None,
        text_key: str | None = None,
        sentences: int | None = None,
        iw_samples: int | None = None,
        analogies: int | None = None,
        step: int | None = None,
    ) -> int:
        """Measure a run: perplexities, -ELBO, KL, MI, active units, analogies; writes evaluation.json.

        Args:
            valid: Other sentences than the run's own; their figures go to evaluation-STEM-HASH.json.
            text_key: Where the text is in a JSON line of these.
            sentences: Held-out sentences; by default as in the run, like the next two.
            iw_samples: Draws per sentence of the likelihood; the paper has 100.
            analogies: Scored analogies, on the grammar.
            step: Which checkpoint; the newest by default.
        """
        from fq_toolkit.optimus.tasks.vae.runs import evaluate_run, evaluate_run_on

        check_keys_of(valid, text_key=text_key)
        if valid is not None:
            if analogies is not None:
                raise ConfigError("--analogies are questions on the grammar: leave them out with --valid")
            other = evaluate_run_on(
                run, valid, step=step, text_key=text_key, sentences=sentences, iw_samples=iw_samples
            )
            sys.stdout.write(f"{other.figures}\n{other.line}")
            return 0
        result = evaluate_run(run, step=step, sentences=sentences, iw_samples=iw_samples, analogies=analogies)
        sys.stdout.write(f"{result}\n{measured_line(RunFolder(run))}")
        return 0

    return int(tyro.cli(evaluate, args=arguments, prog="fq-toolkit evaluate RUN"))


def reconstruct_command(run: Path, arguments: list[str]) -> int:
    """Run ``reconstruct RUN [SENTENCE ...]``."""
    tyro = require("tyro", purpose="the command line")

    def reconstruct(
        texts: Annotated[TextWords, tyro.conf.Positional] = (),
        max_new_tokens: int = 40,
        step: int | None = None,
    ) -> int:
        """Encode sentences and write what their latents say.

        Args:
            texts: Sentences, each in quotes; without any, the lines of the standard input.
            max_new_tokens: Longest answer.
            step: Which checkpoint; by default the model at the end of the run.
        """
        sentences = list(texts) or [line.strip() for line in typed_lines() if line.strip()]
        if not sentences:
            raise ConfigError("no sentence was given, neither as words in quotes nor on the standard input")
        vae = _load(run, step, sentences)
        with user_errors():
            back = vae.reconstruct(sentences, max_new_tokens=max_new_tokens)
        sys.stdout.write("".join(f"{a} -> {b}\n" for a, b in zip(sentences, back, strict=True)))
        return 0

    return int(tyro.cli(reconstruct, args=arguments, prog="fq-toolkit reconstruct RUN"))


def sample_command(run: Path, arguments: list[str]) -> int:
    """Run ``sample RUN``."""
    tyro = require("tyro", purpose="the command line")

    def sample(
        count: int = 10,
        seed: int = 0,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int = 40,
        step: int | None = None,
    ) -> int:
        """Write sentences from latents that are drawn from the prior.

        Args:
            count: How many.
            seed: Of the latents and, with a temperature, of the words.
            temperature: 0 takes the likeliest word each time; 1 draws words as the decoder weighs them.
            top_p: With a temperature: draw from the likeliest words that have this share together.
            max_new_tokens: Longest sentence.
            step: Which checkpoint; by default the model at the end of the run.
        """
        import torch

        from fq_toolkit.training.seeding import isolated_rng

        if temperature < 0 or not 0 < top_p <= 1:
            raise ConfigError(
                f"temperature is {temperature} and top_p {top_p}; expected 0 or more, and 0 < top_p <= 1"
            )
        check_seed(seed)
        drawing = {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature else {}
        vae = _load(run, step, [])
        with user_errors(), isolated_rng(seed):
            generator = torch.Generator().manual_seed(seed)
            texts = vae.sample(count, generator=generator, max_new_tokens=max_new_tokens, **drawing)
        sys.stdout.write("".join(f"{text}\n" for text in texts))
        return 0

    return int(tyro.cli(sample, args=arguments, prog="fq-toolkit sample RUN"))


def interpolate_command(run: Path, arguments: list[str]) -> int:
    """Run ``interpolate RUN A B``."""
    tyro = require("tyro", purpose="the command line")

    def interpolate(
        a: Annotated[str, tyro.conf.Positional],
        b: Annotated[str, tyro.conf.Positional],
        steps: int = 10,
        kind: Literal["linear", "spherical"] = "linear",
        max_new_tokens: int = 40,
        step: int | None = None,
    ) -> int:
        """Write the sentences on the way from A to B.

        Args:
            a: A sentence, in quotes.
            b: Another one.
            steps: How many sentences, those of A and B among them.
            kind: Straight, or on an arc that keeps the length of the latents.
            max_new_tokens: Longest sentence.
            step: Which checkpoint; by default the model at the end of the run.
        """
        vae = _load(run, step, [a, b])
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
        step: int | None = None,
    ) -> int:
        """Write what is to C as B is to A.

        Args:
            a: A sentence, in quotes.
            b: What it becomes.
            c: What is to become something likewise.
            degree: How far to go; 0 writes C again.
            max_new_tokens: Longest sentence.
            step: Which checkpoint; by default the model at the end of the run.
        """
        vae = _load(run, step, [a, b, c])
        with user_errors():
            text = vae.analogy(a, b, c, degree, max_new_tokens=max_new_tokens)
        sys.stdout.write(f"{text}\n")
        return 0

    return int(tyro.cli(analogy, args=arguments, prog="fq-toolkit analogy RUN"))


def play_command(run: Path, arguments: list[str]) -> int:
    """Run ``play RUN``."""
    tyro = require("tyro", purpose="the command line")

    def session(seed: int = 0, step: int | None = None) -> int:
        """Type sentences: see what comes back, interpolate, try analogies. /help in it tells more.

        Args:
            seed: Of /sample.
            step: Which checkpoint; by default the model at the end of the run.
        """
        from fq_toolkit.optimus.tasks.vae.play import PROMPT, play

        check_seed(seed)
        vae = _load(run, step, [])
        play(vae, typed_lines(), sys.stdout, prompt=PROMPT if sys.stdin.isatty() else "", seed=seed)
        return 0

    return int(tyro.cli(session, args=arguments, prog="fq-toolkit play RUN"))


def plot_command(run: Path, arguments: list[str]) -> int:
    """Run ``plot RUN``."""
    from fq_toolkit.optimus.tasks.vae.training import OPTIMUS_TRAINER
    from fq_toolkit.training.train_command import run_plot_command

    return run_plot_command(OPTIMUS_TRAINER, run, arguments)


def _load(run: Path, step: int | None, texts: Sequence[str]) -> "SentenceVAE":
    """Read the model of a run, and tell which words of the texts it does not know."""
    from fq_toolkit.optimus.model.batch import check_texts
    from fq_toolkit.optimus.tasks.vae.play import unknown_words
    from fq_toolkit.optimus.tasks.vae.runs import load_model

    if texts:
        with user_errors():
            check_texts(texts)
    vae = load_model(run, step=step)
    unknown = sorted({word for text in texts for word in unknown_words(vae, text)})
    if unknown:
        logger.warning("words that the model has never seen: %s", " ".join(unknown))
    return vae
