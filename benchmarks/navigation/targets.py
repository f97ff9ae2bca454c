"""The targets of the navigation cases: rates and times of our contenders on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.navigation import contenders as navigation
from benchmarks.results import Row
from benchmarks.verdict import Verdict

# case, shape, contender, its peer, least units per second or longest milliseconds per call or unit, kind
_WANTED = (
    ("env_steps", "B 1", navigation.ENV, navigation.ENV_LOOP, 2e4, "steps/s"),
    ("env_steps", "B 64", navigation.ENV, navigation.ENV_LOOP, 3e5, "steps/s"),
    ("world_loading", "90 scans", navigation.WORLD_PATHS, navigation.NETWORKX, 3000.0, "ms"),
    ("world_loading", "largest scan", navigation.WORLD_PATHS, navigation.NETWORKX_PATHS, 50.0, "ms"),
    ("triplets", "50 paths", navigation.TRIPLETS, navigation.TURNING, 50.0, "us each"),
    ("nav_metrics", "2349 items", navigation.METRICS, navigation.METRICS_LOOP, 100.0, "ms"),
)


def _amount(row: Row, unit: str) -> float:
    """Return the median of a row in a unit."""
    milliseconds = float(row.median_ms or 0.0)
    if unit == "steps/s":
        return 1e3 * row.n / milliseconds
    return 1e3 * milliseconds / row.n if unit == "us each" else milliseconds


def _found(rows: Sequence[Row], case: str, shape: str, contender: str) -> Row | None:
    for row in rows:
        if (row.case, row.shape, row.contender) == (case, shape, contender) and row.median_ms is not None:
            return row
    return None


def navigation_targets(rows: Sequence[Row]) -> list[Verdict]:
    """Return verdicts on what was measured; those of cases that were not are left out."""
    verdicts = []
    for case, shape, contender, peer, limit, unit in _WANTED:
        mine, theirs = _found(rows, case, shape, contender), _found(rows, case, shape, peer)
        if mine is None:
            continue
        value, faster = _amount(mine, unit), unit == "steps/s"
        other = f"; {peer}: {_amount(theirs, unit):,.4g} {unit}" if theirs else ""
        verdicts.append(
            Verdict(
                f"{case}, {shape}: {contender}",
                f"{'>=' if faster else '<'} {limit:,.0f} {unit}",
                value,
                value >= limit if faster else value < limit,
                mine.note + other,
                shown=f"{value:,.4g} {unit}",
            )
        )
    return verdicts
