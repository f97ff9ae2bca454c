"""Configurations: frozen dataclasses that go to JSON and come back, and that refuse what they do not know."""

import dataclasses
import difflib
import json
import math
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from fq_toolkit.training.atomic import explain, write_atomic
from fq_toolkit.training.errors import ConfigError

Config = TypeVar("Config")


class Change(NamedTuple):
    """One option that differs between two configurations."""

    name: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.name}: {self.old!r} -> {self.new!r}"


def nearest(name: str, known: "list[str] | tuple[str, ...]") -> str:
    """Return a clause that names what the user may have meant, or else everything there is.

    Example:
        >>> nearest("stepz", ["steps", "seed"])
        "did you mean 'steps'?"
    """
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def find_preset(presets: Mapping[str, Config], name: str) -> Config:
    """Return a preset by its name.

    Raises:
        ConfigError: for an unknown name, with the nearest known one.
    """
    if name not in presets:
        raise ConfigError(f"unknown preset {name!r}; {nearest(name, list(presets))}")
    return presets[name]


def _convert(value: Any, hint: Any, where: str) -> Any:
    """Return a JSON value as the annotated type, or say what was expected."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        if any(value == known and type(value) is type(known) for known in arguments):
            return value
        raise ConfigError(f"{where} is {value!r}; expected one of {', '.join(map(repr, arguments))}")
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        choices = [a for a in arguments if a is not type(None)]
        # The value's own type if it is one of them, so that a number stays one beside a string.
        return _convert(value, type(value) if type(value) in choices else choices[0], where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where} is {value!r}; expected a list")
        if len(arguments) != 2 or arguments[1] is not Ellipsis:
            if len(value) != len(arguments):
                raise ConfigError(f"{where} has {len(value)} entries; expected {len(arguments)}")
            return tuple(_convert(v, a, where) for v, a in zip(value, arguments, strict=True))
        return tuple(_convert(v, arguments[0], where) for v in value)
    # JSON does not tell 1 from 1.0; a bool is an int in Python and is none here.
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(
                f"{where} is a number of {len(str(abs(value)))} digits; expected less"
            ) from None
    if hint is float and isinstance(value, float) and math.isnan(value):
        raise ConfigError(f"{where} is NaN; expected a number")
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{where} is {value!r} ({type(value).__name__}); expected {hint.__name__}")


def from_mapping(cls: type[Config], values: Mapping[str, Any], *, source: str) -> Config:
    """Build a configuration from names and JSON values; what is absent takes its default.

    Args:
        cls: a frozen dataclass.
        values: option name -> value.
        source: where the values come from, for error messages.

    Raises:
        ConfigError: for an unknown name (with the nearest known one) or a value of the wrong type.
    """
    hints = get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise ConfigError(f"{source} has an unknown option {name!r}; {nearest(name, known)}")
    return cls(**{name: _convert(value, hints[name], f"{source}: {name}") for name, value in values.items()})


def to_json(config: Any, *, trainer: str) -> str:
    """Return the configuration as the text of a ``config.json``: the trainer's name, then every option."""
    return json.dumps({"trainer": trainer, **dataclasses.asdict(config)}, indent=2) + "\n"


def read_json(path: Path) -> tuple[str | None, dict[str, Any]]:
    """Read a ``config.json`` -> (name of the trainer or None, options).

    Raises:
        ConfigError: when the file cannot be read or is not a JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {explain(error)}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}; expected a JSON object of options")
    return values.pop("trainer", None), values


def save_config(config: Any, path: Path, *, trainer: str) -> None:
    """Write ``config.json`` atomically."""
    write_atomic(path, to_json(config, trainer=trainer).encode())


def load_config(cls: type[Config], path: Path, *, trainer: str) -> Config:
    """Read a ``config.json`` of this trainer.

    Raises:
        ConfigError: when it belongs to another trainer, has an unknown option or a wrong value.
    """
    written_by, values = read_json(path)
    if written_by not in (None, trainer):
        raise ConfigError(f"{path} configures the trainer {written_by!r}; expected {trainer!r}")
    return from_mapping(cls, values, source=str(path))


def changes_in_json(old: Any, new: Mapping[str, Any]) -> list[Change]:
    """Return the options that two JSON records both have, with other values."""
    if not isinstance(old, dict):
        return []
    return [Change(name, old[name], new[name]) for name in new if name in old and old[name] != new[name]]


def changes(old: Any, new: Any) -> list[Change]:
    """Return the options in which two configurations of one class differ, in the order of their fields."""
    before, after = dataclasses.asdict(old), dataclasses.asdict(new)
    return [Change(name, before[name], after[name]) for name in before if before[name] != after[name]]
