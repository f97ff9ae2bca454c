"""The targets of the quantizer: its speed and memory beside the peers, on each device."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.quantizer.discriminator import BARE
from benchmarks.quantizer.floor import GEMM
from benchmarks.quantizer.ours import OURS
from benchmarks.quantizer.problem import REFERENCE_SHAPE, SHAPES
from benchmarks.results import Row, median, peak
from benchmarks.verdict import Verdict, geometric_mean

RELEASED, LUCIDRAINS, FAISS = "released layer", "lucidrains", "faiss"


def ratios(rows: Sequence[Row], case: str, above: str, below: str) -> dict[str, float]:
    """Return the median of ``above`` over that of ``below`` by shape, where both were measured."""
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


def quantizer_cpu_targets(rows: Sequence[Row]) -> list[Verdict]:
    """Return the verdicts over the CPU rows of one machine."""
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
    """Return the share that a quantizer adds to the discriminator's step."""
    for row in rows:
        if row.case == "discriminator_overhead" and row.contender == contender and row.median_ms is not None:
            bare = median(rows, row.case, row.shape, BARE)
            return None if bare is None else row.median_ms / bare - 1
    return None


def quantizer_gpu_targets(rows: Sequence[Row]) -> list[Verdict]:
    """Return the verdicts over the GPU rows of one machine."""
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
    ]
