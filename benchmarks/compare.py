"""Compare the working tree with another commit: the same case, process by process, taking turns."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.machine import ROOT


@contextmanager
def worktree(reference: str) -> Iterator[Path]:
    """Check out a commit in a temporary folder.

    Raises:
        ValueError: git does not know the commit.
    """
    with tempfile.TemporaryDirectory(prefix="fq-compare-") as directory:
        path = Path(directory) / "tree"
        added = subprocess.run(
            ["git", "-C", str(ROOT), "worktree", "add", "--detach", str(path), reference],
            capture_output=True,
            text=True,
        )
        if added.returncode != 0:
            raise ValueError(f"git cannot check out {reference!r}: {added.stderr.strip()}")
        try:
            yield path
        finally:
            subprocess.run(
                ["git", "-C", str(ROOT), "worktree", "remove", "--force", str(path)], capture_output=True
            )


#: What was measured, milliseconds there, milliseconds here, ratio.
Line = tuple[str, str, str, str]


class ChildError(RuntimeError):
    """A measuring process failed; the message is the end of its error output."""


def sample(package_root: Path, harness_root: Path, case: str, device: str, quick: bool) -> dict[str, float]:
    """Return the medians of our contenders by ``shape / contender``: a tree's package, today's benchmarks."""
    command = [sys.executable, "-m", "benchmarks", "sample", "--case", case, "--device", device]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(harness_root), str(package_root)])}
    done = subprocess.run(
        command + (["--quick"] if quick else []),
        cwd=harness_root,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise ChildError((done.stderr or done.stdout).strip()[-2000:])
    answer = json.loads(done.stdout.splitlines()[-1])
    if Path(answer["package"]).resolve().parent.parent != package_root.resolve():
        raise ChildError(f"measured {answer['package']}, expected the package in {package_root}")
    return answer["medians"]


def compare(
    reference: str, case: str, *, device: str = "cpu", rounds: int = 5, quick: bool = False
) -> list[Line]:
    """Return lines (what, reference ms, working tree ms, ratio reference / working tree)."""
    with worktree(reference) as tree, tempfile.TemporaryDirectory(prefix="fq-harness-") as directory:
        # Both sides run today's benchmarks from a folder that holds nothing else.
        harness = Path(directory)
        shutil.copytree(
            ROOT / "benchmarks",
            harness / "benchmarks",
            ignore=shutil.ignore_patterns("__pycache__", "results"),
        )
        collected: dict[str, dict[str, list[float]]] = {"reference": {}, "here": {}}
        sides = [("reference", tree), ("here", ROOT)]
        for index in range(rounds):
            # The order flips each round, so that neither side always runs on the warmer machine.
            for name, root in sides if index % 2 == 0 else sides[::-1]:
                for key, value in sample(root, harness, case, device, quick).items():
                    collected[name].setdefault(key, []).append(value)
    lines: list[Line] = []
    for key, values in collected["here"].items():
        here = float(np.median(values))
        if key not in collected["reference"]:
            lines.append((key, "absent", f"{here:.3f}", ""))
            continue
        before = float(np.median(collected["reference"][key]))
        lines.append((key, f"{before:.3f}", f"{here:.3f}", f"{before / here:.2f}x"))
    return lines
