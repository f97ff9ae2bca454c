"""The targets, and whether the results meet them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.floor import GEMM
from benchmarks.quantizer.discriminator import BARE
from benchmarks.quantizer.ours import OURS
from benchmarks.results import Row, median, peak
from benchmarks.shapes import REFERENCE_SHAPE, SHAPES

RELEASED, LUCIDRAINS, FAISS = "released layer", "lucidrains", "faiss"


@dataclass(frozen=True)
class Verdict:
    """One target: what was wanted, what was found (None: not measured), over how many shapes.

    ``shown`` is what was found with its unit, where it is no ratio.
    """

    text: str
    wanted: str
    value: float | None
    met: bool | None
    detail: str = ""
    percent: bool = False
    shown: str = ""

    @property
    def found(self) -> str:
        """The value for a table."""
        if self.value is None:
            return "not measured"
        if self.shown:
            return self.shown
        return f"{100 * self.value:.3g} %" if self.percent else f"{self.value:.2f}x"

    @property
    def word(self) -> str:
        """met, missed or not measured."""
        return "not measured" if self.met is None else ("met" if self.met else "missed")


def geometric_mean(values: Iterable[float]) -> float | None:
    """Geometric mean, None of nothing."""
    listed = list(values)
    return float(np.exp(np.mean(np.log(listed)))) if listed else None


def ratios(rows: Sequence[Row], case: str, above: str, below: str) -> dict[str, float]:
    """Median of ``above`` over median of ``below`` per shape where both were measured."""
    found = {}
    for shape in SHAPES:
        upper, lower = median(rows, case, shape.name, above), median(rows, case, shape.name, below)
        if upper is not None and lower is not None:
            found[shape.name] = upper / lower
    return found


def _over_shapes(values: dict[str, float], text: str, limit: float, *, at_least: bool) -> Verdict:
    mean = geometric_mean(values.values())
    wanted = f"{'>=' if at_least else '<='} {limit:g}x"
    if mean is None:
        return Verdict(text, wanted, None, None)
    worst = min(values, key=lambda name: values[name] if at_least else -values[name])
    detail = f"geometric mean of {len(values)} shapes; worst {values[worst]:.2f}x ({worst})"
    return Verdict(text, wanted, mean, mean >= limit if at_least else mean <= limit, detail)


def _memory(rows: Sequence[Row], peer: str) -> Verdict:
    mine = peak(rows, "train_step", REFERENCE_SHAPE.name, OURS)
    theirs = peak(rows, "train_step", REFERENCE_SHAPE.name, peer)
    text = f"extra memory of a training step relative to {peer}, {REFERENCE_SHAPE.name}"
    if mine is None or not theirs:
        return Verdict(text, "<= 2 %", None, None, percent=True)
    detail = f"{mine / 2**20:.1f} MiB against {theirs / 2**20:.0f} MiB"
    return Verdict(text, "<= 2 %", mine / theirs, mine / theirs <= 0.02, detail, percent=True)


def cpu_targets(rows: Sequence[Row]) -> list[Verdict]:
    """Targets of the CPU over the rows of one machine."""
    from benchmarks.latent.targets import latent_targets
    from benchmarks.navigation.targets import navigation_targets
    from benchmarks.pretraining.targets import vln_targets

    rows = [row for row in rows if row.device == "cpu"]
    return [
        _over_shapes(
            ratios(rows, "train_step", RELEASED, OURS),
            "training step, faster than the released layer",
            8,
            at_least=True,
        ),
        _over_shapes(
            ratios(rows, "train_step", LUCIDRAINS, OURS),
            "training step, faster than lucidrains",
            8,
            at_least=True,
        ),
        _over_shapes(ratios(rows, "lookup", FAISS, OURS), "lookup, faster than faiss", 1.5, at_least=True),
        _over_shapes(
            ratios(rows, "lookup", OURS, GEMM),
            "lookup, time over the fastest fp32 product",
            1.3,
            at_least=False,
        ),
        _memory(rows, RELEASED),
        _memory(rows, LUCIDRAINS),
        *latent_targets(rows),
        *navigation_targets(rows),
        *vln_targets(rows),
    ]


def _gpu_share(rows: Sequence[Row]) -> Verdict:
    large = {shape.name for shape in SHAPES if shape.num_codes >= 1024 and shape.dim >= 128}
    shares = [
        row.floor_share
        for row in rows
        if row.case == "train_step"
        and row.contender == OURS
        and row.shape in large
        and row.floor_share is not None
    ]
    text = "training step, share of the floor for K >= 1024 and dim >= 128"
    if not shares:
        return Verdict(text, ">= 80 %", None, None, percent=True)
    return Verdict(
        text, ">= 80 %", min(shares), min(shares) >= 0.8, f"worst of {len(shares)} shapes", percent=True
    )


def overhead(rows: Sequence[Row], contender: str) -> float | None:
    """Share that a quantizer adds to the discriminator's step."""
    for row in rows:
        if row.case == "discriminator_overhead" and row.contender == contender and row.median_ms is not None:
            bare = median(rows, row.case, row.shape, BARE)
            return None if bare is None else row.median_ms / bare - 1
    return None


def gpu_targets(rows: Sequence[Row]) -> list[Verdict]:
    """Targets of the GPU; not measured until a results file of a GPU exists."""
    from benchmarks.latent.targets import latent_targets

    rows = [row for row in rows if row.device == "cuda"]
    added = overhead(rows, OURS)
    return [
        _gpu_share(rows),
        _over_shapes(
            ratios(rows, "train_step", RELEASED, OURS),
            "training step, faster than the released layer",
            8,
            at_least=True,
        ),
        Verdict(
            "step overhead of a BigGAN-32 discriminator",
            "<= 3 %",
            added,
            None if added is None else added <= 0.03,
            percent=True,
        ),
        *latent_targets(rows),
    ]


TARGETS: dict[str, Callable[[Sequence[Row]], list[Verdict]]] = {"cpu": cpu_targets, "cuda": gpu_targets}
