"""What every study does with its runs: does those that are missing, and ends in the same way."""

from __future__ import annotations

import datetime
import platform
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import machine
from benchmarks.studies.results import Figures, Row, Setting, append, read
from fq_toolkit.training.errors import ConfigError, MissingExtraError, RunError
from fq_toolkit.training.reporting.progress import format_duration


class Stopped(Exception):
    """A signal ended a run before its last step."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


def setting_here(
    *, device: str = "cpu", packages: Sequence[str] = (), more: Sequence[str] = (), **fields: Any
) -> Setting:
    """Return a setting with the commit, the machine and the versions of this process.

    Args:
        device: "cpu" or "cuda".
        packages: whose versions are named beside those of this package, torch and Python.
        more: what else the versions shall say.
        fields: the other fields of `Setting`.
    """
    revision, dirty = machine.commit()
    versions = [machine.package_version(name) for name in ("fq-toolkit", *packages)]
    versions += [f"torch {torch.__version__}", f"python {platform.python_version()}", *more]
    return Setting(
        **fields,
        commit=revision,
        dirty=dirty,
        machine=machine.machine_name(device),
        device=device,
        threads=torch.get_num_threads(),
        versions=", ".join(filter(None, versions)),
    )


def run_missing(
    setting: Setting,
    runs: Sequence[tuple[str, int]],
    path: Path,
    run: Callable[[str, int], Mapping[str, float]],
    console: Console,
    *,
    last: str,
    brief: bool = False,
) -> None:
    """Do the runs that the results file lacks and append each when it has ended.

    Args:
        setting: what all runs share.
        runs: arm and seed of each, in their order.
        path: the results file.
        run: trains an arm with a seed; returns metric -> value.
        console: where each run is reported.
        last: how the name of the last figure of a run begins.
        brief: report only that figure.

    Raises:
        Stopped: when a signal came; what had ended by then is in the file.
        RunError: when a file cannot be written.
    """
    finished = Figures(read(path), setting).finished(last)
    missing = [entry for entry in runs if entry not in finished]
    if len(missing) < len(runs):
        console.print(f"{len(runs) - len(missing)} of {len(runs)} runs are in {path}", soft_wrap=True)
    append(path, [])  # a file that cannot be written is better found now than after the first run
    began = time.monotonic()
    for number, (arm, seed) in enumerate(missing, start=1):
        figures = run(arm, seed)
        today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        append(path, [Row(setting, arm, seed, name, value, today) for name, value in figures.items()])
        said = [f"{name} {value:.4g}" for name, value in figures.items()][-1 if brief else 0 :]
        left = format_duration((time.monotonic() - began) / number * (len(missing) - number))
        console.print(
            f"{number}/{len(missing)} seed {seed} {arm}: {'  '.join(said)}, {left} left",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def exit_code(work: Callable[[], int | None], console: Console, *, kept: bool = True) -> int:
    """Do a part of a study and return the exit code that tells how it ended.

    Args:
        work: returns an exit code, or None for 0.
        console: where it is said that a signal came.
        kept: whether runs that had ended are in a results file that stays.

    Returns:
        The code of `work`, 1 when a run or its results file failed, 2 for wrong options or a missing package,
        128 + n after signal n.
    """
    try:
        return work() or 0
    except (Stopped, KeyboardInterrupt) as error:
        stop = error if isinstance(error, Stopped) else Stopped(signal.SIGINT)
        again = "; the same command goes on with the study" if kept else ""
        console.print(f"{stop}: the run in progress is not counted{again}")
        return 128 + stop.number
    except (ConfigError, MissingExtraError, RunError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, (ConfigError, MissingExtraError)) else 1
