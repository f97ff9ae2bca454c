"""Where a number comes from: machine, versions, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from functools import lru_cache
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _cpu_facts() -> tuple[str, str]:
    """Model name and widest vector extension."""
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
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def machine_name(device: str) -> str:
    """Readable name of the results file: ``2-core-amd-epyc-avx512`` or ``nvidia-h100-80gb-hbm3``."""
    if device == "cuda":
        return _slug(torch.cuda.get_device_name())
    model, widest = _cpu_facts()
    return _slug(f"{core_count()}-core {model} {widest}")


def package_version(package: str) -> str:
    """``name version``, or an empty string when it is not installed."""
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return ""


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


@lru_cache
def commit() -> tuple[str, bool]:
    """Short commit and whether code that is measured or measures differs from it."""
    dirty = _git("status", "--porcelain", "--", "fq_toolkit", "benchmarks", ":!benchmarks/results")
    return _git("rev-parse", "--short=12", "HEAD") or "unknown", bool(dirty)
