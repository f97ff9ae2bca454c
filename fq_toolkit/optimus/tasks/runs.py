"""Runs of sentence VAEs read back and measured again, on their own held-out rows or on another file.

The figures of another file go into a file of their own: ``evaluation.json`` stays what the run itself was
measured on.
"""

import dataclasses
import logging
import re
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fq_toolkit.optimus.data.corpus import GRAMMAR, describe_skipped
from fq_toolkit.optimus.tasks.paired import EMBEDDED
from fq_toolkit.optimus.tasks.sentence_task import HeldOut, SentenceTask
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.runs import SavedRun, open_saved
from fq_toolkit.training.seeding import isolated_rng
from fq_toolkit.training.session import Trainer, make_accelerator
from fq_toolkit.training.storage.best import Which
from fq_toolkit.training.storage.evaluation import write_evaluation
from fq_toolkit.training.storage.measured_data import MeasuredSet, check_measured
from fq_toolkit.training.storage.run_folder import RunFolder
from fq_toolkit.training.task import check_data

logger = logging.getLogger("fq_toolkit")

_LONGEST_STEM = 60
_ENDING = re.compile(r"\.(txt|tsv|jsonl|ndjson)(\.gz)?$")


class Measurement(NamedTuple):
    """A run that was measured again.

    step: of the checkpoint.
    figures: what was measured; its ``str`` is for people.
    path: the file that holds them.
    measured: what they were measured on.
    """

    step: int
    figures: Any
    path: Path
    measured: MeasuredSet

    def __str__(self) -> str:
        record = self.measured.record()
        return (
            f"{self.figures}\n"
            f"measured on {record['file']} ({record['items']:,} items, hash {record['hash']}) "
            f"with the checkpoint of step {self.step}: {self.path}"
        )


def load_task(
    trainer: Trainer[Any],
    path: Path,
    *,
    checkpoint: Which | None = None,
    build_options: dict[str, Any] | None = None,
    **changes: Any,
) -> tuple[SentenceTask, SavedRun[Any]]:
    """Read a run back: its task with trained weights in eval mode, and what was saved.

    Args:
        trainer: that made the run.
        path: the run folder.
        checkpoint: ``"best"``, ``"last"`` or a step; the last by default.
        build_options: keywords of the trainer's ``build`` beside options and accelerator.
        **changes: options that differ from those of the run; None leaves one as it is.

    Raises:
        RunError: when it is no run folder.
        CheckpointError: when the checkpoint is missing, damaged or of another model.
        ConfigError: when it is a run of another trainer, or its data are gone.
    """
    saved = open_saved(trainer.config_class, trainer.name, path, checkpoint=checkpoint)
    given = {name: value for name, value in changes.items() if value is not None}
    config = dataclasses.replace(saved.config, **given)
    build: Any = partial(trainer.build, **(build_options or {}))
    with isolated_rng(config.seed):  # building draws weights, which the checkpoint then replaces
        task = build(config, make_accelerator(config))
    # Before the weights: tokenizers of other data may fit by size, and every word would be another one.
    check_data(saved.state, task.fingerprint, what=task.trained_on, source=task.source)
    with saved.fitting(f". Are the rows of {config.data} still those of the run?"):
        task.vae.load_state_dict(saved.state["vae"])
    task.vae.eval()
    return task, saved


def evaluate_run(
    trainer: Trainer[Any],
    path: Path,
    *,
    checkpoint: Which | None = None,
    valid: str | None = None,
    keys: dict[str, str | None] | None = None,
    **changes: Any,
) -> Measurement:
    """Measure a run again and write the figures: to ``evaluation.json``, or to a file for another source.

    Args:
        trainer: that made the run.
        path: the run folder.
        checkpoint: ``"best"``, ``"last"`` or a step; the last by default.
        valid: what to measure on, in any format of the task; by default what the run was measured on.
        keys: where things are in the lines of ``valid``, as the trainer's ``build`` takes it.
        **changes: options of the measurement, by default as in the run.

    Raises:
        RunError, CheckpointError, ConfigError: as `load_task`; also when the rows that the run was measured
            on changed, or ``valid`` holds nothing to measure with.
    """
    if valid in (GRAMMAR, EMBEDDED):
        raise ConfigError(f"--valid is {valid!r}; expected a file to measure the run on")
    options = {} if valid is None else {"measure_on": valid, **(keys or {})}
    task, saved = load_task(trainer, path, checkpoint=checkpoint, build_options=options, **changes)
    measured_on = task.measured_on()
    target, leaks = saved.folder.evaluation, {}
    if valid is None:
        check_measured(saved.folder.checkpoints(), saved.step, measured_on)
    else:
        target = evaluation_path(saved.folder, measured_on["valid"])
        if task.skipped:
            logger.warning("%s: %s", valid, describe_skipped(task.skipped))
        leaks = {"trained_on": tell_leaks(task.held_out)}
    task.evaluate()
    write_evaluation(
        target,
        {**task.record(), **leaks},
        step=saved.step,
        seconds=saved.seconds,
        measured_on=measured_on,
        seed=task.config.seed,
    )
    return Measurement(saved.step, task.last_evaluation, target, measured_on["valid"])


def evaluation_path(run: RunFolder, measured: MeasuredSet) -> Path:
    """Return where the figures of another file go: ``evaluation-STEM-HASH.json`` in the run folder.

    Example:
        >>> evaluation_path(RunFolder(Path("run")), MeasuredSet("data/test set.txt.gz", "8c1f" * 16, 5)).name
        'evaluation-test-set-8c1f8c1f8c1f.json'
    """
    # The hash keeps files of one name apart, and different contents of one file.
    stem = _ENDING.sub("", Path(measured.file).name)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem)[:_LONGEST_STEM].strip("-.") or "data"
    return run.path / f"evaluation-{stem}-{measured.record()['hash']}.json"


def tell_leaks(held_out: HeldOut) -> int:
    """Warn when a model is measured with what it was trained on; return how many texts that are."""
    known = set(held_out.trained)
    count = sum(text in known for text in held_out.measured)
    if count:
        logger.warning(
            "%d of the %d %s of %s were trained on: figures are better than they would be on new ones",
            count, len(held_out.measured), held_out.noun, held_out.source,
        )  # fmt: skip
    return count
