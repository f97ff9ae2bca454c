"""The training loop that all trainers share, to be read from top to bottom.

A trainer is a `TrainingTask`: it knows how to do one step, what its state is and how good it is. The loop
knows the rest: averaging metrics without waiting for the device in every step, logging, checkpoints, the
guard against NaN, Ctrl-C, and the agreement between processes.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fq_toolkit.training.errors import MISFITS, CheckpointError, ConfigError, DivergedError, RunError
from fq_toolkit.training.interrupt import StopRequest
from fq_toolkit.training.reporting.means import Means
from fq_toolkit.training.reporting.metrics_log import MetricsLog
from fq_toolkit.training.reporting.out_of_memory import is_out_of_memory, memory_watch
from fq_toolkit.training.reporting.progress import Reporter, format_values
from fq_toolkit.training.seeding import branch_rng, rng_state, set_rng_state
from fq_toolkit.training.storage.best import Best, Selection
from fq_toolkit.training.storage.measured_data import MeasuredSet, check_measured
from fq_toolkit.training.storage.run_folder import RunFolder
from fq_toolkit.training.task import LoopResult, TrainingTask

# Panels of metrics that the progress display has room for; metrics.csv has all.
SHOWN = ("loss", "score", "usage", "strength")
# Retries from one checkpoint before giving up.
RETURNS = 3


@dataclass(frozen=True)
class Schedule:
    """When what happens, in steps; 0 is never, but the last step always logs, evaluates and saves."""

    steps: int
    log_every: int
    checkpoint_every: int
    evaluate_every: int

    def due(self, step: int, every: int) -> bool:
        """Return whether something that happens every so many steps happens after ``step`` steps."""
        return step == self.steps or (every > 0 and step % every == 0)


def run_loop(
    task: TrainingTask,
    *,
    accelerator: Any,
    run: RunFolder,
    metrics: MetricsLog,
    schedule: Schedule,
    reporter: Reporter,
    keep_checkpoints: int,
    resume: bool,
    stop_after: int | None = None,
    about: Mapping[str, Any] | None = None,
    measured_on: Mapping[str, MeasuredSet] | None = None,
) -> LoopResult:
    """Train until the last step, a signal or a failure.

    Args:
        task: the trainer.
        accelerator: an ``accelerate.Accelerator``.
        run: where everything goes; only the main process writes.
        metrics: the table of metrics.
        schedule: when to log, save and evaluate, and how many steps there are.
        reporter: told about the progress on the main process.
        keep_checkpoints: complete checkpoints to keep.
        resume: start from the newest checkpoint, if there is one, instead of from nothing.
        stop_after: stop and save after this many steps in all, as if by a signal; for tests and short jobs.
        about: what every checkpoint says that it is of.
        measured_on: what the task is measured on, which has to be what the checkpoint to resume from says.

    Returns:
        The step reached, the seconds of training so far (all sessions of the run, without evaluation), the
        signal that stopped it or None, and the last evaluation.

    Raises:
        DivergedError: when a loss or a weight is not finite before the first checkpoint, or again and again
            after one, each time with other random numbers; the last good checkpoint is kept.
        RunError: when a file cannot be written, or memory runs out.
        CheckpointError: when the checkpoint to resume from is damaged, or of other data.
    """
    checkpoints = run.checkpoints(keep=keep_checkpoints)
    main = accelerator.is_main_process
    step, seconds_before = 0, 0.0
    totals = Means()
    owed: dict[str, float] | None = None  # the row of the checkpoint's step, if that has one
    if resume and checkpoints.steps():
        step, saved = checkpoints.load()
        seconds_before = restore(task, accelerator, saved, totals)
        if measured_on is not None:
            check_measured(checkpoints, step, measured_on)
        owed = owed_row(saved, seconds_before)
    # Rows after the checkpoint are of steps that will be done again.
    if main:
        metrics.rewind(step)
    accelerator.wait_for_everyone()
    if step > schedule.steps:
        raise RunError(f"{run.path} has done {step} steps, more than the {schedule.steps} asked for")

    last_saved = step if resume else None
    returns = 0  # to the last checkpoint
    evaluation: dict[str, float] = {}
    aside = 0.0  # seconds since the start that were not training
    reporter.start(done=step, total=schedule.steps)
    started = time.monotonic()

    def save(row: dict[str, float] | None) -> None:
        """Write a checkpoint, with the row that belongs to it: a kill may come before that is written."""
        nonlocal last_saved, returns
        seconds = seconds_before + time.monotonic() - started - aside
        # On all processes, as the random states are gathered; written by one.
        state = capture(task, accelerator, seconds, totals, row)
        if main:
            checkpoints.save(step, state, about)
        accelerator.wait_for_everyone()
        last_saved, returns = step, 0

    def go_back(what: str) -> int:
        """Return to the last checkpoint, which is finite, and go on from there with other random numbers."""
        nonlocal returns
        if not last_saved or returns == RETURNS:
            raise diverged(what, step, last_saved, run)
        returns += 1
        # With the old random numbers the same batches would end in the same NaN.
        restore(task, accelerator, checkpoints.load(last_saved).state, totals)
        branch_rng(returns)
        if main:
            metrics.rewind(last_saved)
        reporter.note(
            f"{what} is not finite at step {step}: back to the checkpoint of step {last_saved}, with other "
            f"random numbers ({returns} of {RETURNS} times)"
        )
        reporter.advance(last_saved)
        return last_saved

    def write(row: Mapping[str, float]) -> None:
        """Write a row, or say what is left to go on from."""
        try:
            metrics.write(step, row)
        except RunError as error:
            raise RunError(f"{error} {checkpoints.kept()}") from error

    def evaluate(row: dict[str, float]) -> None:
        """Measure, keep the checkpoint if it is the best so far, and add the figures to a row."""
        nonlocal evaluation, aside
        before = time.monotonic()
        evaluation = dict(task.evaluate())
        aside += time.monotonic() - before
        note = f"step {step}: {format_values(evaluation)}"
        # Before the figures go into the table: a run that is killed in between measures, and chooses, again.
        if task.selection is not None and (best := better(task.selection, evaluation)) is not None:
            if last_saved != step:
                save(row)
            if main:
                checkpoints.mark_best(best)
            note += f" (the best {best.column} so far)"
        row.update(evaluation)
        reporter.note(note)

    def better(chosen_by: Selection, figures: Mapping[str, float]) -> Best | None:
        """Return the place of this step if it is the best so far. All processes say the same."""
        value = figures.get(chosen_by.column, math.nan)
        best = checkpoints.best() if main else None
        wins = main and math.isfinite(value) and (best is None or best.yields_to(value, chosen_by))
        # Figures can be finite where weights are not, and a checkpoint has to be one to go on from.
        if not agree(accelerator, wins) or agree(accelerator, not task.is_finite()):
            return None
        return Best(step, chosen_by.column, value)

    stopped_by = None
    try:
        with StopRequest() as request, memory_watch(lambda: f"after step {step}. {checkpoints.kept()}"):
            # A kill came between a checkpoint and the row of its step: write that row now.
            measuring = schedule.due(step, schedule.evaluate_every)
            if agree(accelerator, main and owed is not None and metrics.lacks(step, owed, measuring)):
                row = dict(owed or {})
                if measuring:
                    evaluate(row)
                if main:
                    metrics.rewind(step - 1)
                    write(row)
            while step < schedule.steps:
                totals.add(task.step(step))
                step += 1
                reporter.advance(step)

                row = {}
                logging_now = schedule.due(step, schedule.log_every)
                # Alone we look at the flag in every step; several processes have to agree, which costs a
                # reduction.
                look = logging_now or accelerator.num_processes == 1
                asked = look and agree(accelerator, request.signal is not None)
                stopping = asked or step == stop_after != schedule.steps
                saving = stopping or schedule.due(step, schedule.checkpoint_every)
                measuring = schedule.due(step, schedule.evaluate_every)

                # The only wait for the device of a step that is not measured: losses are read with the rows.
                # Weights are looked at before they are saved, so that every checkpoint is one to go back to.
                if logging_now or saving:
                    means = totals.read(accelerator)
                    bad = next((name for name, value in means.items() if not math.isfinite(value)), None)
                    if bad is None and saving and agree(accelerator, not task.is_finite()):
                        bad = "a weight"
                    if bad is not None:
                        step = go_back(bad)
                        continue
                if logging_now:
                    totals.clear()
                    elapsed = seconds_before + time.monotonic() - started - aside
                    row = {"seconds": elapsed, **means, **task.gauges()}
                    reporter.values(step, {k: v for k, v in row.items() if k.partition("/")[0] in SHOWN})
                # A stop saves before it measures: the grace time of a job's end may be short.
                if saving:
                    save(row if logging_now or measuring else None)
                if measuring and not stopping:
                    evaluate(row)
                if row and main:
                    write(row)
                if stopping:
                    stopped_by = request.signal
                    break
            else:
                if not evaluation:  # resumed at the last step
                    evaluation = dict(task.evaluate())
    finally:
        reporter.stop()
    return LoopResult(step, seconds_before + time.monotonic() - started - aside, stopped_by, evaluation)


def agree(accelerator: Any, flag: bool) -> bool:
    """Return whether any process says yes."""
    if accelerator.num_processes == 1:
        return flag
    # A sum and not a gather: one element, whatever the number of processes.
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), reduction="sum") > 0)


def diverged(what: str, step: int, last_saved: int | None, run: RunFolder) -> DivergedError:
    """Return the error for a value that is not finite."""
    safe = (
        f"The checkpoint of step {last_saved} in {run.checkpoint_folder} is from before and is kept; "
        f"training went back to it {RETURNS} times."
        if last_saved
        else "No checkpoint had been saved yet."
    )
    return DivergedError(
        f"training diverged: {what} is not finite at step {step}. {safe} "
        "Lower learning rates, a larger batch or full precision usually help; start a new run with them."
    )


def capture(
    task: TrainingTask, accelerator: Any, seconds: float, totals: Means, row: Mapping[str, float] | None
) -> dict[str, Any]:
    """Return the whole state of a run: the task's, random states, and apart from them that of the metrics."""
    from accelerate.utils import gather_object

    return {
        "task": task.state(),
        "rng": gather_object([rng_state()]),
        "log": {
            "means": gather_object([totals.state()]),
            "row": None if row is None else {k: v for k, v in row.items() if k != "seconds"},
        },
        "seconds": seconds,
        "num_processes": accelerator.num_processes,
    }


def owed_row(saved: Mapping[str, Any], seconds: float) -> dict[str, float] | None:
    """Return the row that belongs to a checkpoint, None if it has none.

    Raises:
        CheckpointError: when it is no row.
    """
    log = saved.get("log", {})
    row = log.get("row") if isinstance(log, dict) else log
    if row is None:
        return None
    if not isinstance(row, dict) or not all(
        value is None or isinstance(value, (int, float)) for value in row.values()
    ):
        raise CheckpointError("the checkpoint is damaged: the row of metrics.csv in it is none")
    # A step that is only measured has a row without seconds.
    return {"seconds": seconds, **row} if row else {}


def restore(task: TrainingTask, accelerator: Any, saved: Mapping[str, Any], totals: Means) -> float:
    """Undo `capture` and return the seconds of training so far.

    Raises:
        RunError: when the number of processes differs: data order and random streams are split between them.
        CheckpointError: when the state is incomplete, or of another model.
    """
    parts = set(saved) if isinstance(saved, Mapping) else set()
    if missing := sorted({"task", "rng", "seconds", "num_processes"} - parts):
        raise CheckpointError(f"the checkpoint is damaged: it lacks {', '.join(missing)}")
    if saved["num_processes"] != accelerator.num_processes:
        raise RunError(
            f"the run was trained by {saved['num_processes']} processes and cannot go on with "
            f"{accelerator.num_processes}: start as many as before"
        )
    try:
        task.load_state(saved["task"])
        # After the task, whose building and loading may draw.
        set_rng_state(saved["rng"][accelerator.process_index])
        totals.clear()
        if "log" in saved:  # older checkpoints have none
            totals.load_state(saved["log"]["means"][accelerator.process_index], accelerator.device)
        return float(saved["seconds"])
    except (RunError, ConfigError):
        raise
    except MISFITS as error:
        if is_out_of_memory(error):
            raise
        raise CheckpointError(
            "the checkpoint does not fit what was built from the options and the data: was config.json "
            f"edited? {type(error).__name__}: {error}"
        ) from error
