"""The files of a run of the released Optimus.

``checkpoint-encoder-N/`` and ``checkpoint-decoder-N/`` hold a network each (``pytorch_model.bin`` and
``config.json``), ``checkpoint-full-N/training.bin`` both networks and the command line.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fq_toolkit.layers.latent.original_checkpoints import OriginalCheckpoint, read_original

ROLES = ("encoder", "decoder")


class OriginalRun(NamedTuple):
    """The content of a released run at one step.

    Attributes:
        encoder: weights under their own names, including ``linear.weight``.
        decoder: weights under their own names.
        encoder_config: config.json of the encoder, if there is one.
        decoder_config: config.json of the decoder, if there is one.
        args: the command line; empty if it is not known.
        step: N, or None if no folder name says it.
    """

    encoder: dict[str, Tensor]
    decoder: dict[str, Tensor]
    encoder_config: dict[str, Any]
    decoder_config: dict[str, Any]
    args: dict[str, Any]
    step: int | None


def read_run(folder: str | Path, step: int | None = None) -> OriginalRun:
    """Read the checkpoints of one step.

    Args:
        folder: with ``checkpoint-*-N`` in it, or one ``checkpoint-full-N``, or its ``training.bin``.
        step: N; by default the last one.

    Returns:
        Both networks.

    Raises:
        ValueError: no checkpoint, not of this step, or one of the two networks is missing.
    """
    path = Path(folder)
    steps = _steps(path) if path.is_dir() else {}
    if not steps:
        return _complete(read_original(path), {}, None, path)
    if step is not None and step not in steps:
        raise ValueError(f"{str(path)!r} has no checkpoint of step {step}; it has {sorted(steps)}")
    step = max(steps) if step is None else step
    kinds = steps[step]
    if "full" in kinds:
        weights = read_original(path / f"checkpoint-full-{step}")
    else:
        parts = {role: read_original(path / f"checkpoint-{role}-{step}") for role in ROLES if role in kinds}
        weights = OriginalCheckpoint(
            parts["encoder"].encoder if "encoder" in parts else None,
            parts["decoder"].decoder if "decoder" in parts else None,
            None,
        )
    configs = {role: _config(path / f"checkpoint-{role}-{step}" / "config.json") for role in ROLES}
    return _complete(weights, configs, step, path)


def write_run(run: OriginalRun, folder: Path) -> None:
    """Write the three checkpoints of a step into an empty folder, as the release does."""
    args = argparse.Namespace(**run.args)
    parts = {"encoder": (run.encoder, run.encoder_config), "decoder": (run.decoder, run.decoder_config)}
    for role, (state, config) in parts.items():
        place = folder / f"checkpoint-{role}-{run.step}"
        place.mkdir()
        torch.save(state, place / "pytorch_model.bin")
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (place / "config.json").write_text(text, encoding="utf-8")
        torch.save(args, place / "training_encoder_args.bin")  # so named in both folders
    both = {f"{role}.{name}": value for role in ROLES for name, value in parts[role][0].items()}
    full = {"iter": run.step, "model_state_dict": both, "optimizer_state_dict": {}, "args": args}
    (folder / f"checkpoint-full-{run.step}").mkdir()
    torch.save(full, folder / f"checkpoint-full-{run.step}" / "training.bin")


def _steps(folder: Path) -> dict[int, set[str]]:
    """Return step -> kinds of checkpoints that there are of it."""
    steps: dict[int, set[str]] = {}
    for place in folder.glob("checkpoint-*-*"):
        _, kind, number = place.name.split("-", 2)
        if place.is_dir() and kind in (*ROLES, "full") and number.isdigit():
            steps.setdefault(int(number), set()).add(kind)
    return steps


def _config(file: Path) -> dict[str, Any]:
    """Return the content of a config.json; empty if there is none."""
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{str(file)!r} is damaged: {error}") from error


def _complete(
    weights: OriginalCheckpoint, configs: dict[str, dict[str, Any]], step: int | None, path: Path
) -> OriginalRun:
    """Return the run, or refuse one in which a network is missing."""
    if weights.encoder is None or weights.decoder is None:
        missing = "encoder" if weights.encoder is None else "decoder"
        raise ValueError(
            f"{str(path)!r} has no {missing}; give the folder with checkpoint-encoder-N and "
            "checkpoint-decoder-N in it, or checkpoint-full-N"
        )
    config, args = {role: configs.get(role, {}) for role in ROLES}, weights.args or {}
    return OriginalRun(weights.encoder, weights.decoder, config["encoder"], config["decoder"], args, step)
