"""What a checkpoint is of: its trainer and the options that decide what is computed.

The record goes into every checkpoint, under the checksum of its JSON. What else a run must not lose sight of
becomes another entry of `identity` and another comparison in `check_identity`.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from fq_toolkit.training.config import Change
from fq_toolkit.training.errors import CheckpointError, ConfigError
from fq_toolkit.training.storage.measured_data import KEY, MeasuredSet


def identity(
    trainer: str, config: Any, *, free: frozenset[str], measured_on: Mapping[str, MeasuredSet]
) -> dict[str, Any]:
    """Return the record of a run.

    Args:
        trainer: its name.
        config: its options.
        free: names of those that may change on resume, which are left out.
        measured_on: what it is measured on, by name.
    """
    sets = {name: one._asdict() for name, one in measured_on.items()}
    return {"trainer": trainer, "options": _options(config, free), KEY: sets}


def check_identity(
    about: Mapping[str, Any], trainer: str, config: Any, *, free: frozenset[str], source: str
) -> None:
    """Compare the record of a checkpoint with the options of the run it lies in.

    An option that the record lacks did not exist when it was written, and had the value that is the default
    now.

    Args:
        about: what `identity` gave when the checkpoint was saved.
        trainer: name of the trainer that reads it.
        config: options of the run.
        free: names of the options that may differ.
        source: the checkpoint, as the subject of a sentence.

    Raises:
        CheckpointError: for a checkpoint of another trainer.
        ConfigError: naming every option that differs, with its value in the checkpoint and in the run.
    """
    if about.get("trainer") != trainer:
        raise CheckpointError(f"{source} is of the trainer {about.get('trainer')!r}; expected {trainer!r}")
    if differing := differences(about, config, free=free):
        listing = "".join(f"\n  {change}" for change in differing)
        raise ConfigError(
            f"{source} was made with other options than config.json has now:{listing}\n"
            "Was config.json edited, or the checkpoint brought from another run? Put back what was there, "
            "or start a new run."
        )


def differences(about: Mapping[str, Any], config: Any, *, free: frozenset[str]) -> list[Change]:
    """Return the options that differ between a checkpoint's record and a run, but for the free ones."""
    saved = about.get("options")
    saved = saved if isinstance(saved, dict) else {}
    now = _options(config, free)
    defaults = {
        field.name: field.default
        for field in dataclasses.fields(config)
        if field.default is not dataclasses.MISSING
    }
    before = {
        name: saved.get(name, _plain(defaults.get(name))) for name in [*now, *(saved.keys() - now.keys())]
    }
    return [
        Change(name, old, now.get(name))
        for name, old in before.items()
        if name not in free and old != now.get(name)
    ]


def _options(config: Any, free: frozenset[str]) -> dict[str, Any]:
    return {name: _plain(value) for name, value in dataclasses.asdict(config).items() if name not in free}


def _plain(value: Any) -> Any:
    """Return a value as it comes back from JSON: tuples are lists there."""
    return json.loads(json.dumps(value))
