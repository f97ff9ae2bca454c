"""Settings under which the layer reproduces a reference exactly."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Preset:
    """The settings in which references differ.

    Attributes:
        mode: what goes forward, see `FeatureQuantizer`.
        decay: the decay of the moving statistics, in [0, 1).
        commitment: weight of the commitment loss.
        eps: smoothing constant of the moving counts.
        ema: "smoothed" or "debiased".
        init: how the dictionary starts, see `fq_toolkit.layers.codebook.initialization`.
        revive: threshold on the moving counts below which a code restarts; 0 never restarts one.
        revive_by: what ``revive`` counts in: "share" of the mean moving count, or a "count" of rows.
    """

    mode: str = "straight_through"
    decay: float = 0.9
    commitment: float = 0.25
    eps: float = 1e-5
    ema: str = "smoothed"
    init: str = "data"
    revive: float = 0.0
    revive_by: str = "share"


#: "default" is what `FeatureQuantizer` does when nothing is said.
#: "fqgan": the PyTorch release of FQ-GAN.  Its discriminators discard the quantized map, hence the mode; the
#: layer's own default weight is 1.0, while the launch scripts choose 1.0 (CIFAR-10), 10.0 (CIFAR-100) or 15.0
#: (ImageNet 128).
#: "fqgan-tf": the TensorFlow releases, whose moving averages start at zero and are debiased.
#: "lucidrains": vector-quantize-pytorch, which starts from a uniform dictionary with counts of one and, by
#: default, rotates the gradient.
PRESETS = {
    "default": Preset(),
    "fqgan": Preset(mode="regularize", decay=0.8, commitment=1.0, init="normal", revive_by="count"),
    "fqgan-tf": Preset(
        mode="regularize", decay=0.8, commitment=1.0, ema="debiased", init="normal", revive_by="count"
    ),
    "lucidrains": Preset(mode="rotation", decay=0.8, commitment=1.0, init="uniform", revive_by="count"),
}


def find_preset(name: str | None) -> Preset:
    """Return the preset of that name; None is "default".

    Raises:
        ValueError: an unknown name; the nearest one is suggested.
    """
    if name is None:
        return PRESETS["default"]
    if name not in PRESETS:
        near = difflib.get_close_matches(str(name), PRESETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown preset {name!r}: choose one of {', '.join(map(repr, PRESETS))}{hint}")
    return PRESETS[name]


def settings_for(preset: str | None, **given: Any) -> Preset:
    """Return the settings of a preset with those replaced that are given, which None are not.

    Raises:
        ValueError: an unknown preset.
    """
    return replace(find_preset(preset), **{name: value for name, value in given.items() if value is not None})
