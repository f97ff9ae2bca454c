"""Command line: ``python -m benchmarks run | compare | plot | table``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import fq_toolkit
from benchmarks import machine, results, targets
from benchmarks.cases import BY_NAME, CASES, AnyShape, Case
from benchmarks.compare import ChildError
from benchmarks.compare import compare as compare_trees
from benchmarks.gates import run_gates
from benchmarks.quantizer.floor import GEMM
from benchmarks.runner import Floor, Options, measure, merge

REFUSED = 3
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _show(console: Console, case: Case, shape: AnyShape, rows: Sequence[results.Row], least: Floor) -> None:
    title = f"{case.name}: {shape.label}"
    if least.milliseconds is not None:
        title += f"\nfloor {least.milliseconds:.3f} ms: {least.text}"
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in (
        "contender",
        "median ms",
        "quartiles",
        "share of floor",
        "extra MiB",
        "wrong",
        "rounds",
        "note",
    ):
        table.add_column(name, justify="left" if name in ("contender", "note") else "right")
    for row in rows:
        table.add_row(
            row.contender,
            "" if row.median_ms is None else f"{row.median_ms:.3f}",
            "" if row.q25_ms is None else f"{row.q25_ms:.3f} .. {row.q75_ms:.3f}",
            "" if row.floor_share is None else f"{100 * row.floor_share:.0f} %",
            "" if row.peak_extra_bytes is None else f"{row.peak_extra_bytes / 2**20:.1f}",
            "" if row.wrong_share is None else f"{100 * row.wrong_share:.3g} %",
            "" if row.rounds is None else str(row.rounds),
            row.note if row.status == results.MEASURED else f"{row.status}: {row.note}",
        )
    console.print(table)
    others = max((row.other_cores or 0.0 for row in rows), default=0.0)
    if others > machine.BUSY_CORES:
        console.print(
            f"other processes kept {others:.1f} cores busy: measure again on an idle machine", style="red"
        )


def _show_targets(console: Console, device: str, rows: Sequence[results.Row]) -> None:
    table = Table(title=f"targets, {device}", title_justify="left", header_style="bold")
    for name in ("target", "wanted", "found", "", "detail"):
        table.add_column(name)
    for verdict in targets.TARGETS[device](rows):
        colour = {"met": "green", "missed": "red"}.get(verdict.word, "dim")
        table.add_row(
            verdict.text,
            verdict.wanted,
            verdict.found,
            f"[{colour}]{verdict.word}[/{colour}]",
            verdict.detail,
        )
    console.print(table)


def _gates_are_green(console: Console, cases: Sequence[Case], device: str) -> bool:
    """Check the gates of the cases; say what is wrong."""
    green = True
    for name, findings in run_gates([gate for case in cases for gate in case.gates], device).items():
        console.print(f"gate {name}: " + ("[red]red[/red]" if findings else "[green]green[/green]"))
        for finding in findings:
            console.print(f"  {finding}", style="red", markup=False)
        green = green and not findings
    if not green:
        console.print(
            "refused: no speed is reported while a gate is red; nothing was written", style="bold red"
        )
    return green


def _prepare(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads or (1 if arguments.quick else machine.core_count()))
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda was given, but this torch sees no CUDA device; use --device cpu")


def run(arguments: argparse.Namespace) -> int:
    """Check the gates, measure, write the results file and judge the targets."""
    _prepare(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    cases = [BY_NAME[name] for name in arguments.case] if arguments.case else list(CASES)
    if not _gates_are_green(console, cases, arguments.device):
        return REFUSED
    options = Options(
        device=arguments.device,
        dtype=_DTYPES[arguments.dtype],
        seconds=arguments.seconds,
        rounds=3 if arguments.quick and arguments.rounds is None else arguments.rounds,
        quick=arguments.quick,
        memory=not arguments.no_memory,
        graph=arguments.graph,
    )
    path = Path(arguments.results) / f"{machine.machine_name(arguments.device)}.csv"
    for case in cases:
        for shape in case.quick_shapes if arguments.quick else case.shapes:
            if arguments.shape and shape.name not in arguments.shape:
                continue
            rows, least = measure(case, shape, options)
            _show(console, case, shape, rows, least)
            if not arguments.quick:
                results.write(path, merge(results.read(path), rows))
    if arguments.quick:
        console.print("quick run: tiny shapes, no results file was touched")
        return 0
    alike = [
        row
        for row in results.read(path)
        if (row.dtype, row.threads, row.clock_kind) == (arguments.dtype, torch.get_num_threads(), "")
    ]
    _show_targets(console, arguments.device, alike)
    console.print(f"results: {path}", soft_wrap=True)
    return 0


def sample(arguments: argparse.Namespace) -> int:
    """Measure our contenders in one process of `compare` and print the medians as a line of JSON."""
    _prepare(arguments)
    case = BY_NAME[arguments.case]
    findings = run_gates(case.gates, arguments.device)
    if any(findings.values()):
        sys.stderr.write("\n".join(text for texts in findings.values() for text in texts) + "\n")
        return REFUSED
    mine = replace(
        case, contenders=tuple(entry for entry in case.contenders if entry.kind == "ours"), work=None
    )
    options = Options(device=arguments.device, seconds=2.0, memory=False, quick=arguments.quick)
    medians = {}
    for shape in case.quick_shapes if arguments.quick else case.shapes:
        for row in measure(mine, shape, options)[0]:
            if row.median_ms is not None and row.contender != GEMM:
                medians[f"{row.shape} / {row.contender}"] = row.median_ms
    sys.stdout.write(json.dumps({"package": fq_toolkit.__file__, "medians": medians}) + "\n")
    return 0


def compare(arguments: argparse.Namespace) -> int:
    """Print how many times as fast the working tree is as another commit."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        lines = compare_trees(
            arguments.ref,
            arguments.case,
            device=arguments.device,
            rounds=arguments.rounds,
            quick=arguments.quick,
        )
    except (ValueError, ChildError) as error:
        console.print(str(error), style="red", markup=False)
        return REFUSED
    table = Table(title=f"{arguments.case}: {arguments.ref} against the working tree", title_justify="left")
    for name in ("what", f"{arguments.ref} ms", "here ms", "faster by"):
        table.add_column(name)
    for line in lines:
        table.add_row(*line)
    console.print(table)
    return 0


def plot(arguments: argparse.Namespace) -> int:
    """Draw pictures from the results files."""
    from benchmarks.plot import plot_all  # matplotlib, which no other command waits for

    written = plot_all(Path(arguments.results), arguments.case)
    for path in written:
        sys.stdout.write(f"{path}\n")
    if not written:
        sys.stderr.write(f"no results in {arguments.results}; run `python -m benchmarks run` first\n")
    return 0 if written else 1


def table(arguments: argparse.Namespace) -> int:
    """Write the generated sections of the pages from the results files."""
    from benchmarks.table import PAGES, update  # every study with its trainer, slow to import

    pages = [Path(page) for page in arguments.page] if arguments.page else list(PAGES)
    word = "out of date" if arguments.check else "updated"
    outdated = False
    for page in pages:
        try:
            stale = update(page, Path(arguments.results), check=arguments.check)
        except (OSError, ValueError) as error:
            sys.stderr.write(f"{error}\n")
            return 1
        sys.stdout.write(f"{page}: {word if stale else 'up to date'}\n")
        outdated |= stale
    return 1 if outdated and arguments.check else 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="run | compare | plot | table")

    def add(name: str, action: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, description=text, help=text)
        command.set_defaults(action=action)
        return command

    def add_device(command: argparse.ArgumentParser) -> None:
        command.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
        command.add_argument("--threads", type=int, help="CPU threads; default: every core (quick: 1)")
        command.add_argument("--quick", action="store_true", help="tiny shapes, few rounds, nothing written")

    command = add(
        "run", run, "measure ours and the peers in the same rounds and merge the rows into the results file"
    )
    command.add_argument(
        "--case", action="append", choices=list(BY_NAME), help="repeat for several; default: all"
    )
    command.add_argument("--shape", action="append", help="only this shape, by name; repeat for several")
    add_device(command)
    command.add_argument("--dtype", choices=list(_DTYPES), default="float32", help="dtype of the features")
    command.add_argument("--seconds", type=float, default=10.0, help="time for the rounds of one shape")
    command.add_argument("--rounds", type=int, help="exact number of rounds instead")
    command.add_argument("--no-memory", action="store_true", help="skip the peak memory")
    command.add_argument(
        "--graph", action="store_true", help="CUDA: replay graphs where a call can be captured"
    )
    command.add_argument("--results", default=str(results.DIRECTORY), help="folder of the results files")

    command = add("compare", compare, "compare the working tree with a commit, process by process in turns")
    command.add_argument("ref", help="anything git can check out")
    command.add_argument("--case", choices=list(BY_NAME), default="train_step")
    command.add_argument("--rounds", type=int, default=5)
    add_device(command)

    command = add("sample", sample, "one process of compare")
    command.add_argument("--case", choices=list(BY_NAME), required=True)
    add_device(command)

    command = add("plot", plot, "draw a PNG per case from the results files")
    command.add_argument("--case", choices=list(BY_NAME))
    command.add_argument("--results", default=str(results.DIRECTORY))

    command = add(
        "table", table, "regenerate the tables of README.md and docs/results.md from the results files"
    )
    command.add_argument(
        "--check", action="store_true", help="only tell whether it is out of date, as exit code 1"
    )
    command.add_argument("--page", action="append", help="only this file; repeat for several")
    command.add_argument("--results", default=str(results.DIRECTORY))
    return top


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for stale or absent results, 3 when a gate is red."""
    arguments = parser().parse_args(words)
    return arguments.action(arguments)


if __name__ == "__main__":
    sys.exit(main())
