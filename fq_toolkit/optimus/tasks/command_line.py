"""Helpers of the commands: errors without a traceback, seeds, checkpoints, and typed lines."""

import dataclasses
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fq_toolkit.optimus.tasks.runs import evaluate_run
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.session import Trainer
from fq_toolkit.training.storage.best import Which, parse_checkpoint
from fq_toolkit.training.train_command import first_look, run_train_command

_SEEDS = 2**32  # what numpy, scikit-learn and torch all take


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn what the model refuses into an error that the command line prints without a traceback."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error)) from error


def run_training_command(
    trainer: Trainer[Any],
    arguments: list[str],
    *,
    defaults: Callable[[list[str]], Any],
    description: str,
) -> int:
    """Run ``train NAME``; arguments as of `run_train_command`, whose exit status is returned."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # of saving a model, which takes no time here
    return run_train_command(trainer, arguments, defaults=defaults, description=description)


def suit_the_data(config: Any, arguments: list[str]) -> Any:
    """Return defaults that fit the data: 1000 whole words suit only the embedded corpora.

    A tokenizer that is named on the command line stays as it is.

    Args:
        config: the defaults, whose ``data`` are embedded or left open.
        arguments: the command line.

    Returns:
        The defaults to use.
    """
    given = first_look(arguments, "data", "tokenizer", "vocab-size")
    if given.data in (None, config.data, "grammar", "embedded") or given.tokenizer or given.vocab_size:
        return config
    return dataclasses.replace(config, tokenizer="subword", vocab_size=8000)


def checkpoint_or_end(text: str | None) -> Which | None:
    """Read ``--checkpoint`` of commands that take the model at the end of a run by default."""
    return None if text is None else parse_checkpoint(text)


def check_seed(seed: int) -> None:
    """Refuse a seed that not all random number generators take.

    Raises:
        ConfigError: below 0 or too large.
    """
    if not 0 <= seed < _SEEDS:
        raise ConfigError(f"seed is {seed}; expected 0 to {_SEEDS - 1}")


def run_evaluate_command(
    trainer: Trainer[Any],
    run: Path,
    *,
    checkpoint: str,
    valid: str | None = None,
    keys: dict[str, str | None] | None = None,
    **changes: Any,
) -> int:
    """Run ``evaluate RUN``: measure, print the figures and what they were measured on.

    Args:
        trainer: that made the run.
        run: its folder.
        checkpoint: as typed.
        valid: another file to measure on.
        keys: where things are in its lines; None where nothing was typed.
        **changes: options of the measurement; None where nothing was typed.

    Raises:
        ConfigError: also for keys without a file: they would do nothing.
    """
    given = [f"--{name.replace('_', '-')}" for name, value in (keys or {}).items() if value is not None]
    if valid is None and given:
        raise ConfigError(f"{' and '.join(given)} say how to read the file of --valid, which is not given")
    chosen = parse_checkpoint(checkpoint)
    sys.stdout.write(f"{evaluate_run(trainer, run, checkpoint=chosen, valid=valid, keys=keys, **changes)}\n")
    return 0


def typed_lines() -> Iterable[str]:
    """Return the standard input line by line, U+FFFD in place of bytes that are not UTF-8."""
    # A test or an embedding program may have put something else there, which has no encoding to change.
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    return sys.stdin
