"""The settings of an injection, which travel in the model's config, and their checks."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from fq_toolkit.layers.checks import at_least_one, between, one_of

#: Key of the settings in ``model.config``.
CONFIG_KEY = "latent_injection"
#: Version of the settings as they are saved.
VERSION = 1
MODES = ("memory", "embedding", "both")


class Site(NamedTuple):
    """A self-attention that reads a memory slot.

    Attributes:
        name: of the attention module in the model.
        heads: key and value heads.
        key_dim: channels of a key head.
        value_dim: channels of a value head.
    """

    name: str
    heads: int
    key_dim: int
    value_dim: int


@dataclasses.dataclass(frozen=True)
class LatentSpec:
    """The settings of `inject_latent`, with what it learnt about the model.

    Attributes:
        mode: "memory", "embedding" or "both".
        latent_size: nz, the length of a latent.
        slots: memory slots per layer.
        share_kv: whether one vector is key and value of a slot.
        projector: "linear", "mlp" or "custom".
        layers: numbers of the layers that read memory, ascending.
        num_layers: layers of the decoder.
        sites: the attention of each of `layers`; empty without memory.
        hidden_size: width of the input embeddings.
        max_positions: rows of the model's table of learned positions, None where it has none.
        first_position: position of the first token of a text.
        init_std: standard deviation of the projections at the start.
        latent_dropout: probability that training replaces a latent by the null latent.
        check_finite: whether latents with NaN or infinity are refused.
    """

    mode: str
    latent_size: int
    slots: int
    share_kv: bool
    projector: str
    layers: tuple[int, ...]
    num_layers: int
    sites: tuple[Site, ...]
    hidden_size: int
    max_positions: int | None
    first_position: int
    init_std: float
    latent_dropout: float
    check_finite: bool

    @property
    def has_memory(self) -> bool:
        """Return whether layers read memory slots."""
        return self.mode != "embedding"

    @property
    def has_embedding(self) -> bool:
        """Return whether the latent is added to the input embeddings."""
        return self.mode != "memory"

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return {
            "version": VERSION,
            "loaded_by": "fq_toolkit.load_latent",
            **dataclasses.asdict(self),
            "layers": list(self.layers),
            "sites": [list(site) for site in self.sites],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LatentSpec:
        """Read the settings that `to_dict` wrote.

        Raises:
            ValueError: another version, or an unknown or missing setting.
        """
        settings = dict(values)
        settings.pop("loaded_by", None)  # for people who read config.json
        version = settings.pop("version", None)
        if version != VERSION:
            raise ValueError(
                f"config.{CONFIG_KEY} has version {version!r}, expected {VERSION}: "
                "it was saved by another version of fq-toolkit; load it with that one"
            )
        known = [field.name for field in dataclasses.fields(cls)]
        for name in settings:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; the nearest known one is {near[0]!r}" if near else ""
                raise ValueError(f"config.{CONFIG_KEY} has an unknown setting {name!r}{hint}")
        missing = [name for name in known if name not in settings]
        if missing:
            raise ValueError(f"config.{CONFIG_KEY} lacks {', '.join(missing)}; save the model again")
        settings["layers"] = tuple(settings["layers"])
        settings["sites"] = tuple(Site(*site) for site in settings["sites"])
        return cls(**settings)


def check_settings(
    mode: str, latent_size: int, slots: int, init_std: float, latent_dropout: float, share_kv: bool
) -> None:
    """Refuse settings that no model can have.

    Raises:
        TypeError: a setting of the wrong type.
        ValueError: a setting out of range.
    """
    one_of("mode", mode, MODES)
    at_least_one("latent_size", latent_size)
    at_least_one("slots", slots)
    between("init_std", init_std, 0.0, float("inf"))
    between("latent_dropout", latent_dropout, 0.0, 1.0, open_above=True)
    if not isinstance(share_kv, bool):
        raise TypeError(f"share_kv must be True or False, got {share_kv!r}")


def choose_layers(layers: Iterable[int] | None, num_layers: int) -> tuple[int, ...]:
    """Return the numbers of the layers, ascending and counted from 0; negative ones count from the end.

    Raises:
        TypeError: something other than integers.
        ValueError: no layer, one out of range, or one named twice.
    """
    if layers is None:
        return tuple(range(num_layers))
    chosen = []
    for layer in layers:
        if isinstance(layer, bool) or not isinstance(layer, int):  # True is an int, and no layer
            raise TypeError(f"layers must be a list of integers, got {layer!r} in it")
        if not -num_layers <= layer < num_layers:
            raise ValueError(f"layers contains {layer}, but the model has layers 0 to {num_layers - 1}")
        chosen.append(layer % num_layers)
    if not chosen:
        raise ValueError("layers is empty: name at least one layer, or pass None for all")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"layers names a layer twice: {sorted(chosen)}")
    return tuple(sorted(chosen))
