"""Two runs that should be one: their checkpoints and metrics compared, one of them killed on the way."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from fq_toolkit.training.config import save_config
from fq_toolkit.training.reporting.metrics_log import read_metrics
from fq_toolkit.training.storage.checkpoints import Checkpoints
from fq_toolkit.training.storage.packing import pack


class Killed(BaseException):
    """Ends a run as a kill does: nobody catches it, nothing is saved."""


def last_state(run: Path, *without: str) -> tuple[dict[str, torch.Tensor], Any]:
    """Return tensors and JSON of the newest checkpoint, without the clock and other parts."""
    state = Checkpoints(run / "checkpoints").load().state
    return pack({name: value for name, value in state.items() if name not in ("seconds", *without)})


def assert_same_state(a: Path, b: Path, *without: str) -> None:
    """Compare the last checkpoints of two runs, bit by bit."""
    (tensors, rest), (others, other_rest) = last_state(a, *without), last_state(b, *without)
    assert tensors.keys() == others.keys()
    for name, value in tensors.items():
        assert torch.equal(value, others[name]), name
    assert rest == other_rest


def rows_without_clock(run: Path) -> list[dict[str, float]]:
    """Return the metrics of a run, without the seconds."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(run / "metrics.csv")]


def assert_same_run(a: Path, b: Path) -> None:
    """Compare the last checkpoints, which one is the best, and all metrics of two runs, bit by bit."""
    assert_same_state(a, b)
    assert Checkpoints(a / "checkpoints").best() == Checkpoints(b / "checkpoints").best()
    assert rows_without_clock(a) == rows_without_clock(b)


def assert_a_kill_changes_nothing(trainer: str, config: Any, folder: Path) -> None:
    """Kill a process at a random moment, resume what it left, and compare with a run that nobody killed.

    Args:
        trainer: its name on the command line.
        config: options of a run of many seconds that soon saves its first checkpoint.
        folder: empty.
    """
    save_config(config, folder / "config.json", trainer=trainer)
    run, whole = folder / "run", folder / "whole"
    command = [sys.executable, "-m", "fq_toolkit", "train", trainer]
    words = [*command, "--config", str(folder / "config.json")]
    child = subprocess.Popen([*words, "--out", str(run)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while not Checkpoints(run / "checkpoints").steps():
        assert time.monotonic() < deadline
        assert child.poll() is None, child.communicate()[0]
        time.sleep(0.01)
    time.sleep(random.uniform(0, 1))
    child.kill()
    assert child.wait() in (-signal.SIGKILL, 0)
    child.communicate()
    subprocess.run([*command, "--resume", str(run)], check=True, capture_output=True, timeout=300)
    subprocess.run([*words, "--out", str(whole)], check=True, capture_output=True, timeout=300)
    assert_same_run(whole, run)
