"""What the commands share: user errors without a traceback, seeds, and what is typed."""

import dataclasses
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.session import Trainer
from fq_toolkit.training.train_command import first_look, run_train_command

_SEEDS = 2**32  # what numpy, scikit-learn and torch all take


@contextmanager
def user_errors() -> Iterator[None]:
    """Let the command line print what the model refuses, without a traceback."""
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
    """Defaults for the data that a command line names: 1000 whole words suit the embedded corpora only.

    What the command line says of the tokenizer itself stays as it is said.

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


def check_seed(seed: int) -> None:
    """Refuse a seed that not all random number generators take.

    Raises:
        ConfigError: below 0 or too large.
    """
    if not 0 <= seed < _SEEDS:
        raise ConfigError(f"seed is {seed}; expected 0 to {_SEEDS - 1}")


def check_keys_of(valid: str | None, **keys: str | None) -> None:
    """Refuse names of keys in the lines of a file when no file is given: they would do nothing.

    Raises:
        ConfigError: naming the options.
    """
    given = [f"--{name.replace('_', '-')}" for name, value in keys.items() if value is not None]
    if valid is None and given:
        raise ConfigError(f"{' and '.join(given)} say how to read the file of --valid, which is not given")


def typed_lines() -> Iterable[str]:
    """Return the standard input line by line, U+FFFD in place of bytes that are not UTF-8."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    return sys.stdin
