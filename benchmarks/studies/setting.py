"""What a study trains: the options of its runs, and where its images are."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path

from benchmarks import machine
from benchmarks.quantizer import ours
from benchmarks.studies.results import Setting
from benchmarks.studies.runs import setting_here
from fq_toolkit.fqgan.data.datasets import load_dataset
from fq_toolkit.fqgan.gan.config import FQGANConfig, preset
from fq_toolkit.training.config import from_mapping
from fq_toolkit.training.errors import ConfigError

BASELINE = "none"
QUICK_STEPS, QUICK_SAMPLES = 8, 200
LOG_EVERY = 20
# Preset -> the file of the shared data that it is meant for.
SHARED = {"mnist": "t10k-images-idx3-ubyte.gz", "cifar10-small": "cifar10_subset.npz"}
# Options that the study decides itself.
_DECIDED = ("preset", "data", "fq", "seed", "steps", "eval_samples", "device")


def find_data(name: str, given: Path | None) -> str:
    """Return where the images of a preset are: given, the preset's own, or in the shared data.

    Raises:
        ConfigError: when they are nowhere.
    """
    if given is not None or preset(name).data:
        return str(given or preset(name).data)
    root = os.environ.get("FQ_TOOLKIT_DATA")
    folder = Path(root) if root else machine.ROOT.parent / "shared" / "data"
    if name in SHARED and (folder / "images" / SHARED[name]).exists():
        return str(folder / "images" / SHARED[name])
    wanted = f", or {SHARED[name]} in the folder images of $FQ_TOOLKIT_DATA" if name in SHARED else ""
    raise ConfigError(f"the preset {name} needs images: give --data PATH{wanted}")


def changed_preset(name: str, options: str) -> FQGANConfig:
    """Return a preset with changed options, written ``num_codes=128 fq_layers=[0,1]``.

    Raises:
        ConfigError: for an unknown option, a wrong value, or an option that the study decides itself.
    """
    changes = {}
    for word in options.split():
        option, equals, text = word.partition("=")
        if not equals or option in _DECIDED:
            raise ConfigError(
                f"--set {word}: expected OPTION=VALUE; {', '.join(_DECIDED)} have options of their own"
            )
        try:
            changes[option] = json.loads(text)
        except ValueError:
            changes[option] = text
    return from_mapping(
        FQGANConfig, {**dataclasses.asdict(preset(name)), **changes}, source=f"--set {options}"
    )


def run_config(setting: Setting, arm: str, seed: int, *, data: str = "digits") -> FQGANConfig:
    """Return the preset's options, which within a setting differ only in ``fq`` and ``seed``."""
    return dataclasses.replace(
        changed_preset(setting.preset, setting.options),
        data=data,
        fq=arm,  # type: ignore[arg-type]
        seed=seed,
        steps=setting.steps,
        eval_samples=setting.samples,
        device="cpu" if setting.device == "cpu" else "auto",
        log_every=max(1, min(LOG_EVERY, setting.steps // 4)),
        checkpoint_every=0,
        evaluate_every=0,
        keep_checkpoints=1,
    )


def make_setting(arguments: argparse.Namespace, data: str) -> Setting:
    """Return what all runs of this call share.

    Raises:
        ConfigError: for an option out of range, or images that cannot be used.
    """
    options = " ".join(arguments.set)
    base = changed_preset(arguments.preset, options)
    images = load_dataset(data, size=base.image_size, conditional=base.conditional)
    shape = "x".join(map(str, images.images.shape))
    setting = setting_here(
        device=arguments.device,
        more=(f"kernels {ours.backend(arguments.device)}",),
        preset=arguments.preset,
        steps=arguments.steps or (QUICK_STEPS if arguments.quick else base.steps),
        samples=QUICK_SAMPLES if arguments.quick else base.eval_samples,
        data=images.name if images.name == arguments.preset else f"{images.name} {shape}",
        options=options,
    )
    run_config(setting, BASELINE, 0)  # refuses a wrong option before anything is done
    return setting
