"""Where a number comes from: machine, versions, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import time
from functools import lru_cache
from pathlib import Path

import torch

#: Cores kept busy by others above which a measurement counts as disturbed.
BUSY_CORES = 0.1
ROOT = Path(__file__).resolve().parent.parent


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _cpu_facts() -> tuple[str, str]:
    """Return the model name and the widest vector extension."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), ""
    model = re.search(r"model name\s*:\s*(.+)", text)
    flags = re.search(r"flags\s*:\s*(.+)", text)
    words = set(flags.group(1).split()) if flags else set()
    widest = next(
        (
            name
            for flag, name in (("amx_tile", "amx"), ("avx512f", "avx512"), ("avx2", "avx2"))
            if flag in words
        ),
        "",
    )
    name = (
        re.sub(r"\(R\)|\(TM\)|CPU|@.*|\d+-Core Processor|Processor", " ", model.group(1))
        if model
        else platform.machine()
    )
    return name, widest


def core_count() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def machine_name(device: str) -> str:
    """Return the stem of the results file: ``2-core-amd-epyc-avx512``, ``nvidia-h100-80gb-hbm3``."""
    if device == "cuda":
        return _slug(torch.cuda.get_device_name())
    model, widest = _cpu_facts()
    return _slug(f"{core_count()}-core {model} {widest}")


class OtherLoad:
    """How many cores other processes keep busy, on average since this object was made."""

    def __init__(self) -> None:
        self._started = self._read()

    @staticmethod
    def _read() -> tuple[float, float, float] | None:
        """Return seconds: wall clock, busy time of all cores, busy time of this process."""
        try:
            fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        except (OSError, ValueError):
            return None
        user, nice, system, _idle, _iowait, irq, softirq, steal = fields
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy, time.process_time()

    def cores(self) -> float | None:
        """Return the busy cores of others, None where the system does not tell."""
        now, before = self._read(), self._started
        if now is None or before is None or now[0] - before[0] < 0.05:  # the system counts in hundredths
            return None
        elapsed, everyone, mine = (late - early for late, early in zip(now, before, strict=True))
        return max(0.0, (everyone - mine) / elapsed)


def package_version(package: str) -> str:
    """Return ``name version``, or an empty string when it is not installed."""
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return ""


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


@lru_cache
def commit() -> tuple[str, bool]:
    """Return the short commit, and whether code that is measured or measures differs from it."""
    dirty = _git("status", "--porcelain", "--", "fq_toolkit", "benchmarks", ":!benchmarks/results")
    return _git("rev-parse", "--short=12", "HEAD") or "unknown", bool(dirty)
