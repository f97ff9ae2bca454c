"""One run from its options to its folder: what every trainer does around the loop.

A paper describes itself with a `Trainer`; `train` and `dry_run` do the rest.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from fq_toolkit.training.config import changes, load_config, save_config
from fq_toolkit.training.errors import ConfigError, RunError, require
from fq_toolkit.training.loop import Schedule, restore, run_loop
from fq_toolkit.training.reporting.means import Means
from fq_toolkit.training.reporting.metrics_log import MetricsLog, read_metrics
from fq_toolkit.training.reporting.out_of_memory import memory_watch
from fq_toolkit.training.reporting.plots import plot_curves
from fq_toolkit.training.reporting.progress import (
    GuardedReporter,
    LineReporter,
    Reporter,
    SilentReporter,
    format_duration,
    format_values,
)
from fq_toolkit.training.storage.identity import check_identity, identity
from fq_toolkit.training.storage.measured_data import check_measured
from fq_toolkit.training.storage.run_folder import RunFolder
from fq_toolkit.training.storage.run_lock import RunLock
from fq_toolkit.training.task import TrainingTask

# Options that may change on resume: they decide how long and how closely one looks, not what is computed.
FREE_ON_RESUME = frozenset({"steps", "log_every", "checkpoint_every", "keep_checkpoints", "evaluate_every"})

Config = TypeVar("Config")


@dataclass(frozen=True)
class Trainer(Generic[Config]):
    """What a paper tells about its trainer.

    Args:
        name: on the command line and in ``config.json``.
        config_class: frozen dataclass of all options. It has ``steps``, ``log_every``, ``checkpoint_every``,
            ``keep_checkpoints``, ``evaluate_every``, ``device`` and ``precision``.
        build: (options, accelerator) -> the task.
        run_name: options -> first part of a default folder name.
        artifacts: the files of a finished run that a user opens first.
        free_on_resume: options that may change on resume.
    """

    name: str
    config_class: type[Config]
    build: Callable[[Config, Any], TrainingTask]
    run_name: Callable[[Config], str]
    artifacts: tuple[str, ...] = ("curves.png", "metrics.csv")
    free_on_resume: frozenset[str] = FREE_ON_RESUME


class TrainResult(NamedTuple):
    """How a run ended.

    run: its folder.
    step: steps done.
    seconds: of training, without evaluation, over all sessions.
    signal: the signal that stopped it, or None.
    evaluation: the final measurement; None when stopped early.
    is_main_process: whether this process is the one that writes and speaks.
    """

    run: Path
    step: int
    seconds: float
    signal: int | None
    evaluation: Any
    is_main_process: bool


def make_accelerator(config: Any) -> Any:
    """Return accelerate's view of the devices and processes, by ``config.device`` and ``config.precision``.

    Raises:
        MissingExtraError: without accelerate.
    """
    accelerate = require("accelerate", purpose="training")
    state = accelerate.state.AcceleratorState
    if state._shared_state and state().mixed_precision != config.precision:
        state._reset_state()  # of an earlier run in this process, which is over; processes stay connected
    # Without a GPU it has to be told so, or several processes on CPUs do not find each other.
    cpu = config.device == "cpu" or not torch.accelerator.is_available()
    return accelerate.Accelerator(cpu=cpu, mixed_precision=config.precision)


def train(
    trainer: Trainer[Config],
    config: Config | None = None,
    *,
    out: Path | None = None,
    resume: Path | None = None,
    reporter: Reporter | None = None,
    stop_after: int | None = None,
) -> TrainResult:
    """Train, or go on with a run, and leave a complete run folder.

    Args:
        trainer: which.
        config: all options; None takes the defaults, or with ``resume`` those of the run.
        out: the new run folder; by default ``runs/RUN_NAME-TIME``.
        resume: the run folder to go on with instead, from its newest checkpoint if it has one.
        reporter: told about the progress; by default lines in the log. One that fails to write is told no
            more and does not end the training.
        stop_after: stop and save after this many steps in all, as Ctrl-C would.

    Raises:
        ConfigError: for options that do not fit, or that changed since the run started.
        RunError: when the run folder cannot be used or is being trained in, a file cannot be written, memory
            runs out, or training diverges.
        CheckpointError: when the newest checkpoint is damaged or of another run.
        MissingExtraError: without a package of the extra ``train``.
    """
    if resume is not None:
        if out is not None:
            raise ConfigError("a resumed run stays in its folder: give either out or resume")
        config = resumed_config(trainer, config, resume)
    options: Any = config or trainer.config_class()
    accelerator = make_accelerator(options)
    reporter = GuardedReporter(
        (reporter or LineReporter()) if accelerator.is_main_process else SilentReporter()
    )
    with ExitStack() as held:
        if accelerator.is_main_process:  # before minutes of work
            if out is not None:
                RunFolder(out).check_free()
            if resume is not None:
                RunFolder.open(resume).check_writable()
                held.enter_context(RunLock(resume))
        # Before the folder: data or an extractor that do not fit leave nothing behind.
        with memory_watch(lambda: "before the first step."):
            task = trainer.build(options, accelerator)
            reporter.note(task.summary())
            task.prepare_evaluation()
            measured_on = task.measured_on()
        run = open_run(trainer, options, out=out, resume=resume, accelerator=accelerator, held=held)
        reporter.note(f"run folder: {run.path}")
        if resume is not None:
            reporter.note(start_of(run))
        result = run_loop(
            task,
            accelerator=accelerator,
            run=run,
            metrics=MetricsLog(run.metrics, task.columns()),
            schedule=Schedule(
                options.steps, options.log_every, options.checkpoint_every, options.evaluate_every
            ),
            reporter=reporter,
            keep_checkpoints=options.keep_checkpoints,
            resume=resume is not None,
            stop_after=stop_after,
            about=identity(trainer.name, options, free=trainer.free_on_resume, measured_on=measured_on),
            measured_on=measured_on,
        )
        complete = result.step == options.steps and result.signal is None
        if accelerator.is_main_process:
            with memory_watch(lambda: f"after step {result.step}. {run.checkpoints().kept()}"):
                task.finish(run, result, complete=complete)
                if read_metrics(run.metrics):  # stopped before the first row, there is nothing to draw
                    draw_curves(trainer, run)
        accelerator.wait_for_everyone()
    # A run that was stopped has an evaluation of an earlier step, which is not its result.
    return TrainResult(
        run.path,
        result.step,
        result.seconds,
        result.signal,
        task.last_evaluation if complete else None,
        accelerator.is_main_process,
    )


def resumed_config(trainer: Trainer[Config], requested: Config | None, run: Path) -> Config:
    """Return the options to go on with: those of the run, and of the requested ones what may change.

    Raises:
        ConfigError: naming every option that changed and may not, with its old and new value, be it in the
            request or in ``config.json`` since the newest checkpoint.
        RunError: when there is no run, or one that has ended and lost its checkpoints.
        CheckpointError: when the newest checkpoint is damaged or of another trainer.
    """
    folder = RunFolder.open(run)
    saved = load_config(trainer.config_class, folder.config, trainer=trainer.name)
    checkpoints = folder.checkpoints()
    if checkpoints.steps():
        step, about = checkpoints.about()
        if about is not None:
            source = f"the checkpoint of step {step} in {checkpoints.folder}"
            check_identity(about, trainer.name, saved, free=trainer.free_on_resume, source=source)
    elif folder.evaluation.exists():
        raise RunError(
            f"{run} holds a run that has ended, and its checkpoints are gone: there is nothing to go on "
            "from. Bring them back, or start a new run in another folder."
        )
    refused = [c for c in changes(saved, requested or saved) if c.name not in trainer.free_on_resume]
    if refused:
        listing = "".join(f"\n  {change}" for change in refused)
        raise ConfigError(
            f"these options differ from those that {run} was started with, so it would not be the same run:"
            f"{listing}\nLeave them out to go on with the run, or start a new one. "
            f"May change: {', '.join(sorted(trainer.free_on_resume))}."
        )
    return requested or saved


def start_of(run: RunFolder) -> str:
    """Return a sentence about where a resumed run goes on."""
    checkpoints = run.checkpoints()
    if not checkpoints.steps():
        return "there is no checkpoint yet: the run starts at step 0"
    step, about = checkpoints.about()
    unchecked = (
        ", which an older version wrote: its options and the part in JSON cannot be checked"
        if about is None
        else ""
    )
    return f"going on from the checkpoint of step {step}{unchecked}"


def open_run(
    trainer: Trainer[Config],
    config: Config,
    *,
    out: Path | None,
    resume: Path | None,
    accelerator: Any,
    held: ExitStack,
) -> RunFolder:
    """Make or open the run folder on the main process and write the configuration; agree on it everywhere.

    A new folder is locked on the main process, as a resumed one is already.
    """
    from accelerate.utils import broadcast_object_list

    if resume is not None:
        run = RunFolder.open(resume)
    else:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        # The clocks of processes differ, so the main one's name is taken by all.
        path = out or Path("runs") / f"{trainer.run_name(config)}-{stamp}"
        run = RunFolder(Path(broadcast_object_list([str(path)])[0]))
    if accelerator.is_main_process:
        if resume is None:
            run = RunFolder.create(run.path)
            held.enter_context(RunLock(run.path))
            run.check_free()  # of another process that was quicker
        save_config(config, run.config, trainer=trainer.name)
    accelerator.wait_for_everyone()
    return run


def draw_curves(trainer: Trainer[Any], run: RunFolder) -> None:
    """Draw ``curves.png`` from ``metrics.csv``."""
    config = load_config(trainer.config_class, run.config, trainer=trainer.name)
    plot_curves(run.metrics, run.curves, title=trainer.run_name(config))


def dry_run(
    trainer: Trainer[Config], config: Config, *, out: Path | None = None, resume: Path | None = None
) -> str:
    """Build everything, do two steps, write nothing.

    Returns:
        What was built, how long a step takes and what a run would write; empty beside the main process.

    Raises:
        ConfigError: as `train` would.
        RunError: when there is no run to resume, or its checkpoint is damaged.
    """
    if resume is not None:
        config = resumed_config(trainer, config, resume)
    options: Any = config
    accelerator = make_accelerator(options)
    task = trainer.build(config, accelerator)
    first = 0
    if resume is not None:
        checkpoints = RunFolder.open(resume).checkpoints()
        if checkpoints.steps():
            first, saved = checkpoints.load()
            restore(task, accelerator, saved, Means())
            check_measured(checkpoints, first, task.measured_on())
    task.step(first)  # the first step is slower than the rest
    started = time.monotonic()
    values = read_values(task.step(first + 1))
    seconds = time.monotonic() - started
    if not accelerator.is_main_process:
        return ""
    left = max(0, options.steps - first)
    folder = resume or out or Path("runs") / f"{trainer.run_name(config)}-TIME"
    return (
        f"{task.summary()}\n{format_values(values)}\n"
        f"{seconds:.3f} s a step, about {format_duration(seconds * left)} for {left} steps\n"
        f"Nothing was written. A run writes config.json, checkpoints/ (the last {options.keep_checkpoints}), "
        f"evaluation.json, {', '.join(trainer.artifacts)} into {folder}"
    )


def read_values(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the metrics of a step as numbers; waits for the device."""
    return {name: float(value) for name, value in values.items()}
