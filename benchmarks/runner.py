"""Measure one case on one shape: gates, contenders, rounds, memory, rows."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import machine, memory
from benchmarks.cases import CASES, Case
from benchmarks.contender import AnyShape, Contender, Problem, Task, Unavailable
from benchmarks.quantizer import floor, oracle, ours
from benchmarks.quantizer.problem import FeatureProblem
from benchmarks.results import FAILED, MEASURED, SKIPPED, Row
from benchmarks.timing import Timing, as_graph, interleave, paired_ratio

_BUDGET = 12 << 30
_GEMM_KEY, _COPY_KEY = "floor: product {}", "floor: copy"


@dataclass(frozen=True)
class Options:
    """How to measure."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    seconds: float = 10.0
    rounds: int | None = None
    quick: bool = False
    memory: bool = True
    graph: bool = False


def memory_budget(device: str) -> int:
    """Return the bytes that a contender may use: 80 % of what is free, and at most 12 GiB on a CPU."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0] * 0.8)
    try:  # MemAvailable counts what the system can reclaim, which MemFree leaves out
        with open("/proc/meminfo") as file:
            facts = dict(line.split(":") for line in file)
        return min(_BUDGET, int(int(facts["MemAvailable"].split()[0]) * 1024 * 0.8))
    except (OSError, KeyError):
        return _BUDGET


def _row_maker(case: Case, shape: AnyShape, options: Options) -> Callable[..., Row]:
    revision, dirty = machine.commit()
    common: dict[str, Any] = {
        "case": case.name,
        "shape": shape.name,
        "n": shape.rows,
        "dim": shape.dim,
        "num_codes": shape.num_codes,
        "layout": shape.layout,
        "dtype": str(options.dtype).removeprefix("torch."),
        "device": options.device,
        "machine": machine.machine_name(options.device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": revision,
        "dirty": dirty,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }
    return lambda **more: Row(**common, **more)


@dataclass(frozen=True)
class _Entry:
    contender: Contender
    task: Task | None
    status: str
    note: str = ""
    wrong_share: float | None = None


def _start(contender: Contender, problem: Problem[AnyShape]) -> _Entry:
    """Build a contender and call it once; a peer that cannot run becomes a row with the reason."""
    reason = contender.reason_to_skip(problem, memory_budget(problem.device))
    if reason:
        return _Entry(contender, None, SKIPPED, reason)
    try:
        task = contender.build(problem)
        result = task.run(task.setup())
    except Unavailable as error:
        return _Entry(contender, None, SKIPPED, str(error))
    except Exception as error:
        if contender.kind == "ours":
            raise  # a peer that fails is a row of the results; we have to work
        return _Entry(contender, None, FAILED, f"{type(error).__name__}: {str(error)[:200]}")
    wrong = None
    if task.indices is not None and isinstance(problem, FeatureProblem):
        found = task.indices(result).cpu().numpy()
        wrong = oracle.wrong_share(found, problem.rows.float().cpu().numpy(), problem.codebook.cpu().numpy())
    note = task.note or (f"backend {ours.backend(problem.device)}" if contender.kind == "ours" else "")
    return _Entry(contender, task, MEASURED, note, wrong)


@dataclass(frozen=True)
class Floor:
    """The least time, and how it was found."""

    milliseconds: float | None = None
    text: str = "no floor for this case"
    gemm: tuple[str, Timing] | None = None


def _floor_tasks(case: Case, problem: Problem[AnyShape]) -> tuple[dict[str, Task], dict[str, str]]:
    """Return what the floor needs in the timed rounds, and the label of each product."""
    if case.work is None or not isinstance(problem, FeatureProblem):
        return {}, {}
    tasks, labels = {_COPY_KEY: floor.copy_task(problem)}, {}
    if case.work.gemms:
        for variant in floor.gemm_variants(problem, budget_bytes=memory_budget(problem.device)):
            key = _GEMM_KEY.format(variant.label)
            tasks[key], labels[key] = variant.task, variant.label
    return tasks, labels


def _find_floor(
    case: Case, problem: Problem[AnyShape], timings: dict[str, Timing], labels: dict[str, str]
) -> Floor:
    if case.work is None or not isinstance(problem, FeatureProblem):
        return Floor()
    copy_ms = timings[_COPY_KEY].median
    bandwidth = 2 * problem.feature_bytes / copy_ms / 1e6
    gemm, text = None, f"passes at {bandwidth:.1f} GB/s"
    if labels:
        key = min(labels, key=lambda name: timings[name].median)
        gemm = (labels[key], timings[key])
        flops = 2 * problem.shape.rows * problem.shape.dim * problem.shape.num_codes
        rate = flops / timings[key].median / 1e6
        text = f"fp32 product {timings[key].median:.2f} ms ({labels[key]}, {rate:.0f} GFLOP/s), {text}"
    limits = floor.limits_for(torch.cuda.get_device_name()) if problem.device == "cuda" else None
    if limits:
        return Floor(floor.model_floor(problem, case.work, limits), "limits model of the device", gemm)
    least = floor.measured_floor(problem, case.work, gemm[1].median if gemm else 0.0, copy_ms)
    return Floor(least, text, gemm)


def _peak(
    case: Case, shape: AnyShape, entry: _Entry, problem: Problem[AnyShape], options: Options
) -> int | str | None:
    """Return the peak extra bytes, a reason, or None where it is not asked for."""
    wanted = case.memory is not None and options.memory and entry.contender.kind != "floor"
    wanted = wanted and (case.memory_shapes is None or shape.name in case.memory_shapes)
    if options.quick:
        wanted = (
            wanted
            and case.name == "lookup"
            and entry.contender.kind == "ours"
            and shape == case.quick_shapes[0]
        )
    if not wanted or entry.task is None:
        return None
    if case.memory == "resident" and options.device == "cpu":
        return memory.peak_in_fresh_process(
            case.name, shape.name, entry.contender.name, torch.get_num_threads()
        )
    # of a first call where gradients and optimizer states shall count; the code itself has run before
    task = entry.contender.build(problem) if case.memory == "tensors" else entry.task
    peak = memory.cuda_peak if options.device == "cuda" else memory.allocated_peak
    return max(0, peak(task) - case.result_bytes(problem))


def measure(case: Case, shape: AnyShape, options: Options) -> tuple[list[Row], Floor]:
    """Return the rows of one case and shape, and its floor; the gates must have been checked before."""
    # One problem for all: contenders read the same tensors, and their caches start alike.
    problem: Problem[AnyShape] = case.problem(shape, options.device, options.dtype)
    make_row = _row_maker(case, shape, options)
    entries = [_start(contender, problem) for contender in case.contenders]
    tasks = {entry.contender.name: entry.task for entry in entries if entry.task is not None}
    floor_tasks, labels = _floor_tasks(case, problem)
    # Contenders whose calls need fresh state are not replayed, so their rows keep the ordinary clock.
    replayed = set()
    if options.graph and options.device == "cuda":
        for name, task in tasks.items():
            graph = as_graph(task) if task.repeatable else None
            if graph is not None:
                tasks[name] = graph
                replayed.add(name)
    base_name = next((e.contender.name for e in entries if e.task and e.contender.kind == "base"), None)
    others = machine.OtherLoad()
    # The floor is timed in the same rounds: a slower clock then slows both, and the share stays true.
    timings = interleave(
        {**tasks, **floor_tasks},
        device=options.device,
        seconds=options.seconds,
        rounds=options.rounds,
        min_rounds=case.min_rounds if base_name else 3,
    )
    base = timings[base_name] if base_name else None
    other_cores = others.cores()
    least = _find_floor(case, problem, timings, labels)
    rows = []
    for entry in entries:
        contender = entry.contender
        row: dict[str, Any] = {
            "contender": contender.name,
            "kind": contender.kind,
            "version": machine.package_version(contender.package),
            "status": entry.status,
            "gate": "green",
            "wrong_share": entry.wrong_share,
            "note": entry.note,
        }
        if entry.task is not None:
            timing = timings[contender.name]
            low, high = timing.quartiles
            clock = "cuda graph" if contender.name in replayed else timing.clock
            extra = _peak(case, shape, entry, problem, options)
            if isinstance(extra, str):
                row["note"] = f"{entry.note}; memory: {extra}".lstrip("; ")
                extra = None
            share = least.milliseconds / timing.median if least.milliseconds is not None else None
            row |= {
                "clock": clock,
                "rounds": len(timing.samples),
                "median_ms": timing.median,
                "q25_ms": low,
                "q75_ms": high,
                "over_base": paired_ratio(timing, base) if base else None,
                "peak_extra_bytes": extra,
                "floor_ms": least.milliseconds,
                "floor_share": share,
                "other_cores": other_cores,
            }
        rows.append(make_row(**row))
    if least.gemm:
        label, timing = least.gemm
        low, high = timing.quartiles
        rows.append(
            make_row(
                contender=floor.GEMM,
                kind="floor",
                version=machine.package_version("torch"),
                status=MEASURED,
                gate="green",
                clock=timing.clock,
                rounds=len(timing.samples),
                median_ms=timing.median,
                q25_ms=low,
                q75_ms=high,
                other_cores=other_cores,
                note=label,
            )
        )
    return rows, least


def merge(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """Return the new rows and the old ones of groups that were not measured again, by case and shape."""
    replaced = {row.group for row in new}
    kept = [row for row in old if row.group not in replaced]
    case_order = {case.name: position for position, case in enumerate(CASES)}
    shape_order = {
        (case.name, shape.name): position for case in CASES for position, shape in enumerate(case.shapes)
    }
    return sorted(
        [*kept, *new],
        key=lambda row: (
            row.device,
            row.threads,
            case_order.get(row.case, len(CASES)),
            shape_order.get((row.case, row.shape), len(shape_order)),
            row.shape,
            row.dtype,
            row.clock_kind,
        ),
    )
