"""Runs a piece of code in a process of its own, with limits of memory and time."""

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[3]
MEMORY, SECONDS = 2 * 2**30, 60


class Outcome(NamedTuple):
    code: int
    output: str
    peak: int


_FRAME = """
import resource
from fq_toolkit.fqgan.data.datasets import load_dataset
from fq_toolkit.training.errors import ConfigError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
{code}
except ConfigError as error:
    print("ConfigError:", error)
print("peak", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def run_bounded(code: str, *, seconds: int = SECONDS, path: str | None = None) -> Outcome:
    """Run code after imports; ``peak`` is what it needed beyond them. ConfigError is caught and printed."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY * 2, MEMORY * 2))

    indented = "\n".join(f"    {line}" for line in code.splitlines())
    done = subprocess.run(
        [sys.executable, "-c", _FRAME.format(code=indented)],
        capture_output=True,
        text=True,
        timeout=8 * seconds,
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            **({"PATH": path} if path else {}),
        },
        preexec_fn=limit,
        check=False,
    )
    last = done.stdout.rpartition("peak ")[2].strip()
    return Outcome(done.returncode, done.stdout + done.stderr, int(last) if last.isdigit() else -1)
