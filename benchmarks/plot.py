"""One picture per case: time of every contender on every shape, with the floor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import ticker

from benchmarks.cases import BY_NAME
from benchmarks.quantizer.problem import describe_sizes
from benchmarks.results import DIRECTORY, Row, machine_files, read

_COLOURS = {"ours": "#1b6ca8", "peer": "#8c8c8c", "floor": "#e0a030", "base": "#8aa88a"}


def caption(rows: Sequence[Row]) -> str:
    """Return machine, threads, versions and commit of the rows."""
    commits = sorted({row.commit + (" (modified)" if row.dirty else "") for row in rows})
    versions = sorted({row.version for row in rows if row.version} | {f"python {rows[0].python}"})
    return (
        f"{rows[0].machine}, {rows[0].threads} threads, {rows[0].dtype}, commit {', '.join(commits)}\n"
        f"{', '.join(versions)}; points: median, lines: quartiles; dashed: floor"
    )


def _milliseconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


class _Between(ticker.LogFormatter):
    """Names some of the lines between powers of ten where there is less than a decade to read."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return _milliseconds(x) if super().__call__(x, pos) else ""


def plot_case(rows: Sequence[Row], path: Path) -> None:
    """Write the picture of the rows of one case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shapes = list(dict.fromkeys(row.shape for row in rows))
    columns = min(2, len(shapes))
    lines = -(-len(shapes) // columns)
    names = len({row.contender for row in rows})
    figure, axes = pyplot.subplots(
        lines,
        columns,
        figsize=(6.2 * columns, (0.6 + 0.27 * names) * lines + 1.2),
        squeeze=False,
        layout="constrained",
    )
    for position, axis in enumerate(axes.flat):
        if position >= len(shapes):
            axis.axis("off")
            continue
        here = [row for row in rows if row.shape == shapes[position]]
        for height, row in enumerate(reversed(here)):
            if row.median_ms is None:
                axis.annotate(
                    f" {row.note[:60]}",
                    (0, height),
                    xycoords=("axes fraction", "data"),
                    fontsize=6,
                    va="center",
                )
                continue
            # Points, not bars: a logarithmic axis has no zero for a bar to start from.
            low, high = row.q25_ms or row.median_ms, row.q75_ms or row.median_ms
            colour = _COLOURS.get(row.kind, _COLOURS["peer"])
            axis.plot([low, high], [height, height], color=colour, linewidth=2)
            axis.plot([row.median_ms], [height], "o", color=colour, markersize=5)
            axis.annotate(f"  {_milliseconds(row.median_ms)}", (high, height), fontsize=7, va="center")
        axis.set_yticks(range(len(here)), [row.contender for row in reversed(here)], fontsize=7)
        axis.set_ylim(-0.6, len(here) - 0.4)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _milliseconds(value)))
        axis.xaxis.set_minor_formatter(_Between(minor_thresholds=(1, 0.4)))
        axis.grid(axis="both", linewidth=0.3)
        axis.set_axisbelow(True)
        floors = [row.floor_ms for row in here if row.floor_ms]
        if floors:
            axis.axvline(floors[0], color="black", linestyle="--", linewidth=0.8)
        axis.margins(x=0.15)
        first = here[0]
        sizes = describe_sizes(first.n, first.dim, first.num_codes)
        axis.set_title(f"{first.shape}: {sizes}", fontsize=8)
        axis.tick_params(axis="x", which="both", labelsize=7)
        axis.set_xlabel("ms", fontsize=7)
    case = BY_NAME.get(rows[0].case)
    figure.suptitle(f"{rows[0].case}: {case.title}" if case else rows[0].case, fontsize=10)
    figure.supxlabel(caption(rows), fontsize=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    pyplot.close(figure)


def plot_all(directory: Path = DIRECTORY, case: str | None = None) -> list[Path]:
    """Draw pictures of every results file, as ``<machine>/<case>.png`` beside it."""
    written = []
    for source in machine_files(directory):
        rows = read(source)
        for name in dict.fromkeys(row.case for row in rows):
            if case is not None and name != case:
                continue
            path = directory / source.stem / f"{name}.png"
            plot_case([row for row in rows if row.case == name], path)
            written.append(path)
    return written
