"""The target of the pretraining case: samples per second over those of the literal port."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.pretraining.contenders import CASE, OURS, PORT
from benchmarks.pretraining.problem import SHAPES
from benchmarks.results import Row, median
from benchmarks.verdict import Verdict

LEAST = 2.0


def pretraining_targets(rows: Sequence[Row]) -> list[Verdict]:
    """Return the verdict over the rows of one machine, on the size with the least gain."""
    text, wanted = "pretraining, samples/s over a literal port", f">= {LEAST:g}x"
    found = {}
    for shape in SHAPES:
        port, mine = median(rows, CASE, shape.name, PORT), median(rows, CASE, shape.name, OURS)
        if port is not None and mine:
            found[shape.name] = port / mine
    if len(found) < len(SHAPES):
        return [Verdict(text, wanted, None, None)]
    worst = min(found, key=lambda name: found[name])
    detail = f"worst of {len(found)} sizes ({worst})"
    return [Verdict(text, wanted, found[worst], found[worst] >= LEAST, detail)]
