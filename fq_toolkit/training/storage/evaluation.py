"""``evaluation.json``: the figures of a run and what they were measured with."""

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fq_toolkit import __version__
from fq_toolkit.training.atomic import write_atomic
from fq_toolkit.training.storage.measured_data import KEY, MeasuredSet, set_records


def provenance() -> dict[str, Any]:
    """Return what a figure is read with: versions, machine, device, threads. Goes to JSON."""
    return {
        "versions": {
            "fq_toolkit": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
    }


def write_evaluation(
    path: Path,
    figures: Mapping[str, Any],
    *,
    step: int,
    seconds: float,
    measured_on: Mapping[str, MeasuredSet],
    seed: int,
) -> None:
    """Write the figures of a checkpoint.

    Args:
        path: ``RunFolder.evaluation``, or another file for what is measured on other data.
        figures: what was measured and anything else that explains it; JSON values.
        step: of the checkpoint.
        seconds: of training up to it.
        measured_on: name -> the data.
        seed: of the run.

    Raises:
        RunError: when the file cannot be written.
    """
    record = {
        "step": step,
        "training_seconds": round(seconds, 1),
        **figures,
        KEY: set_records(measured_on),
        "seed": seed,
        **provenance(),
    }
    write_atomic(path, (json.dumps(record, indent=2) + "\n").encode())
