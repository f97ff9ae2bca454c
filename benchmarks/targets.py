"""The targets of all cases by device, and whether the results meet them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.latent.targets import latent_targets
from benchmarks.navigation.targets import navigation_targets
from benchmarks.pretraining.targets import pretraining_targets
from benchmarks.quantizer.targets import quantizer_cpu_targets, quantizer_gpu_targets
from benchmarks.results import Row
from benchmarks.verdict import Verdict


def cpu_targets(rows: Sequence[Row]) -> list[Verdict]:
    """Return the verdicts on the CPU over the rows of one machine."""
    rows = [row for row in rows if row.device == "cpu"]
    return [
        *quantizer_cpu_targets(rows),
        *latent_targets(rows),
        *navigation_targets(rows),
        *pretraining_targets(rows),
    ]


def gpu_targets(rows: Sequence[Row]) -> list[Verdict]:
    """Return the verdicts on the GPU; "not measured" until a results file of a GPU exists."""
    rows = [row for row in rows if row.device == "cuda"]
    return [*quantizer_gpu_targets(rows), *latent_targets(rows)]


TARGETS: dict[str, Callable[[Sequence[Row]], list[Verdict]]] = {"cpu": cpu_targets, "cuda": gpu_targets}
