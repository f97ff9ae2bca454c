"""The README's benchmark section, regenerated from the results files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import targets
from benchmarks.floor import GEMM
from benchmarks.latent.targets import latent_section
from benchmarks.machine import BUSY_CORES, ROOT
from benchmarks.quantizer.discriminator import BARE
from benchmarks.quantizer.ours import OURS
from benchmarks.results import DIRECTORY, Row, median, peak, read_all
from benchmarks.shapes import SHAPES, Shape

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
NOT_MEASURED = "not measured"


def _ms(value: float | None) -> str:
    return NOT_MEASURED if value is None else (f"{value:.0f}" if value >= 100 else f"{value:.3g}")


def _mib(value: int | None) -> str:
    return NOT_MEASURED if value is None else _ms(value / 2**20)


def _ratio(upper: float | None, lower: float | None) -> str:
    return "-" if upper is None or lower is None else f"{upper / lower:.1f}x"


def _cell(rows: Sequence[Row], case: str, shape: str, contender: str) -> str:
    """A time, or why there is none."""
    value = median(rows, case, shape, contender)
    if value is not None:
        return _ms(value)
    notes = [row.note for row in rows if (row.case, row.shape, row.contender) == (case, shape, contender)]
    return notes[0].split(":")[0] if notes and notes[0] else NOT_MEASURED


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
        *(f"| {' | '.join(line)} |" for line in lines),
    ]


def _share(rows: Sequence[Row], case: str, shape: str) -> str:
    for row in rows:
        if (row.case, row.shape, row.contender) == (case, shape, OURS) and row.floor_share is not None:
            return f"{100 * row.floor_share:.0f} %"
    return NOT_MEASURED


def _train_line(rows: Sequence[Row], shape: Shape) -> list[str]:
    times = {
        name: median(rows, "train_step", shape.name, name)
        for name in (OURS, targets.RELEASED, targets.LUCIDRAINS)
    }
    peaks = [peak(rows, "train_step", shape.name, name) for name in times]
    return [
        shape.label,
        *(_cell(rows, "train_step", shape.name, name) for name in times),
        f"{_ratio(times[targets.RELEASED], times[OURS])} / {_ratio(times[targets.LUCIDRAINS], times[OURS])}",
        _share(rows, "train_step", shape.name),
        " / ".join(_mib(value) if value is not None else "-" for value in peaks),
    ]


_LOOKUP_PEERS = (targets.FAISS, "torch.cdist", "chunked addmm, compiled", "scikit-learn")


def _lookup_line(rows: Sequence[Row], shape: Shape) -> list[str]:
    mine = median(rows, "lookup", shape.name, OURS)
    return [
        shape.label,
        *(_cell(rows, "lookup", shape.name, name) for name in (OURS, *_LOOKUP_PEERS, GEMM)),
        _ratio(median(rows, "lookup", shape.name, targets.FAISS), mine),
        f"{mine / gemm:.2f}" if mine and (gemm := median(rows, "lookup", shape.name, GEMM)) else "-",
    ]


def _overhead_lines(rows: Sequence[Row]) -> list[str]:
    here = [row for row in rows if row.case == "discriminator_overhead"]
    if not any(row.contender == BARE and row.median_ms is not None for row in here):
        return []
    parts = []
    for row in here:
        added = targets.overhead(here, row.contender)
        if row.contender != BARE and added is not None:
            parts.append(f"{row.contender} {100 * added:+.1f} %")
    bare = median(here, "discriminator_overhead", here[0].shape, BARE)
    text = f"One optimizer step of {here[0].shape} takes {_ms(bare)} ms without a quantizer; one adds: "
    return [text + ", ".join(parts) + ".", ""]


def _verdicts(found: Sequence[targets.Verdict]) -> list[str]:
    return _markdown(
        ("target", "wanted", "found", "", "detail"),
        [(verdict.text, verdict.wanted, verdict.found, verdict.word, verdict.detail) for verdict in found],
    )


def _disturbance(rows: Sequence[Row]) -> list[str]:
    """A warning when other processes were busy during the measurements."""
    worst = max((row.other_cores or 0.0 for row in rows), default=0.0)
    if worst <= BUSY_CORES:
        return []
    return [f"Other processes kept up to {worst:.1f} cores busy meanwhile: read these times with care.", ""]


def _machine_section(rows: Sequence[Row]) -> list[str]:
    first = rows[0]
    commits = sorted({row.commit + (" (modified)" if row.dirty else "") for row in rows})
    source = f"`benchmarks/results/{first.machine}.csv`"
    text = [
        f"**{first.machine}**, {first.threads} threads, {first.dtype}, torch {first.torch}, "
        f"commit {', '.join(commits)}, {max(row.date for row in rows)}; every number is from {source}.",
        "",
        *_disturbance(rows),
        "Training step (forward, dictionary update, backward), median ms; "
        "extra memory is beyond inputs and results; "
        "the floor holds torch's product, which writes N x K, so that a fused kernel can pass 100 %:",
        "",
        *_markdown(
            (
                "shape",
                OURS,
                "released",
                "lucidrains",
                "faster than released / lucidrains",
                "share of the floor",
                "extra MiB: ours / released / lucidrains",
            ),
            [_train_line(rows, shape) for shape in SHAPES],
        ),
        "",
        "Lookup alone on contiguous rows, median ms:",
        "",
        *_markdown(
            (
                "shape",
                OURS,
                *_LOOKUP_PEERS,
                "fastest fp32 product",
                "faster than faiss",
                "time over the product",
            ),
            [_lookup_line(rows, shape) for shape in SHAPES],
        ),
        "",
        *_overhead_lines(rows),
        *latent_section(rows),
    ]
    return text


def render(rows: Sequence[Row]) -> str:
    """The text between the markers."""
    lines: list[str] = []
    devices: dict[str, Callable[[Sequence[Row]], list[targets.Verdict]]] = targets.TARGETS
    for device, judge in devices.items():
        here = [row for row in rows if row.device == device and row.dtype == "float32" and not row.clock_kind]
        title = "CPU" if device == "cpu" else "GPU"
        machines = sorted({(row.machine, row.threads) for row in here})
        if not machines:
            lines += [
                f"### {title}",
                "",
                f"Every GPU number: {NOT_MEASURED}." if device == "cuda" else f"{NOT_MEASURED}.",
                "",
            ]
            lines += [*_verdicts(judge([])), ""]
        for name in machines:
            mine = [row for row in here if (row.machine, row.threads) == name]
            lines += [f"### {title}", "", *_machine_section(mine), *_verdicts(judge(mine)), ""]
    return "\n".join(lines).strip() + "\n"


def update(readme: Path = ROOT / "README.md", directory: Path = DIRECTORY, *, check: bool = False) -> bool:
    """Rewrite the section between the markers; with ``check`` only tell whether it would change.

    Returns:
        Whether the text was (with ``check``: is) out of date.

    Raises:
        ValueError: the file lacks the markers.
    """
    text = readme.read_text()
    if BEGIN not in text or END not in text.split(BEGIN, 1)[1]:
        raise ValueError(f"{readme} needs a line {BEGIN} and after it a line {END}")
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    fresh = f"{before}{BEGIN}\n{render(read_all(directory))}{END}{after}"
    if fresh == text:
        return False
    if not check:
        readme.write_text(fresh)
    return True
