"""Runs of the speaker's trainer, read back from their folder and measured."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from fq_toolkit.prevalent.data.splits import Split, check_split
from fq_toolkit.prevalent.files import DataError, read_json
from fq_toolkit.prevalent.model.speaker import Speaker
from fq_toolkit.prevalent.tasks.another_split import (
    Another,
    another_line,
    measured_set,
    open_another,
    result_path,
    shown_in,
    tell_known,
)
from fq_toolkit.prevalent.tasks.config import MINI
from fq_toolkit.prevalent.tasks.r2r.data import R2R, R2RData, load_r2r_data
from fq_toolkit.prevalent.tasks.speaker.config import TRAINER, SpeakerConfig
from fq_toolkit.prevalent.tasks.speaker.evaluation import SpeakerEvaluation, bleu, tell
from fq_toolkit.prevalent.tasks.speaker.training import (
    SpeakerTask,
    check_ways,
    measured_splits,
    selecting_split,
    write_speaker_evaluation,
)
from fq_toolkit.training.atomic import write_atomic
from fq_toolkit.training.config import load_config
from fq_toolkit.training.runs import open_saved
from fq_toolkit.training.session import make_accelerator
from fq_toolkit.training.storage.best import Which
from fq_toolkit.training.storage.evaluation import write_evaluation
from fq_toolkit.training.storage.measured_data import check_newest, measured_line
from fq_toolkit.training.storage.run_folder import RunFolder


class SpeakerRun(NamedTuple):
    """A run read back: a speaker with the weights of one of its checkpoints, and its data.

    folder: its files.
    config: all options.
    data: the splits.
    speaker: in evaluation mode.
    step: of the weights.
    seconds: of training.
    cut: split -> instructions that were cut in training.
    checkpoint: how it was asked for.
    """

    folder: RunFolder
    config: SpeakerConfig
    data: R2RData
    speaker: Speaker
    step: int
    seconds: float
    cut: dict[str, int]
    checkpoint: Which


def load_speaker(path: Path, *, checkpoint: Which = "best") -> SpeakerRun:
    """Read a run folder. Where the checkpoints were removed, the best weights are those in ``speaker/``.

    Args:
        path: the folder.
        checkpoint: ``"best"``, ``"last"`` or a step.

    Raises:
        RunError: as `fq_toolkit.prevalent.tasks.runs.load_navigator`.
    """
    folder = RunFolder.open(path)
    config = load_config(SpeakerConfig, folder.config, trainer=TRAINER)
    data = load_r2r_data(config.data_options())
    if checkpoint == "best" and not folder.checkpoints().steps():
        noted = read_json(folder.evaluation) if folder.evaluation.exists() else {}
        if not isinstance(noted, dict):
            raise DataError(
                f"{folder.evaluation} holds {type(noted).__name__}; expected an object: remove it"
            )
        speaker = Speaker.from_pretrained(path)
        step, seconds = noted.get("step", config.steps), noted.get("training_seconds", 0.0)
        cut = noted.get("instructions_cut", {})
    else:
        # Any checkpoint carries what an older version kept as its best; our own best is read below.
        of_checkpoint = "last" if checkpoint == "best" else checkpoint
        saved = open_saved(SpeakerConfig, TRAINER, path, checkpoint=of_checkpoint)
        task = SpeakerTask(config, data, make_accelerator(config))
        speaker, step, seconds, cut = task.speaker, saved.step, saved.seconds, {"train": task.cut}
        with saved.fitting():
            task.load_state(saved.state)
            if checkpoint == "best":
                best = task.best(folder)
                if best is None:  # nothing was measured yet
                    checkpoint = "last"
                else:
                    task.speaker.load_state_dict(best.weights)
                    step = best.step
    return SpeakerRun(folder, config, data, speaker.eval(), step, seconds, cut, checkpoint)


def evaluate_run(run: SpeakerRun) -> str:
    """Measure a run again; write ``evaluation.json``.

    Returns:
        The figures and what they were measured on, for people.

    Raises:
        CheckpointError: when the validation splits are not those that the run was measured on.
    """
    measured_on = measured_splits(run.data)
    check_newest(run.folder, measured_on)
    told = {name: tell(run.speaker, split) for name, split in run.data.validation.items()}
    result = SpeakerEvaluation(
        {name: bleu(entries) for name, entries in told.items()},
        {name: len(entries) for name, entries in told.items()},
        selecting_split(run.data) if run.checkpoint == "best" else "",
        run.step,
        run.data.train.synthesised,
    )
    write_speaker_evaluation(
        run.folder,
        run.config,
        result,
        seconds=run.seconds,
        measured_on=measured_on,
        instructions_cut=run.cut,
        checkpoint=run.checkpoint,
    )
    return f"{result}\n{measured_line(run.folder)}"


def evaluate_another(run: SpeakerRun, another: Another) -> str:
    """Measure a run on another split or file, as `fq_toolkit.prevalent.tasks.runs.evaluate_another` does.

    What the speaker says goes to ``instructions-STEM-HASH.json``.
    """
    config, train = run.config, run.data.train
    split = open_another(another, config, R2R, {"train": train, **run.data.validation})
    check_split(split)
    check_paths(split)
    measured = measured_set(split)
    known = shown_in(train.items, split.items, split.world, texts=config.data != MINI)
    generated = another.generated(config)
    trained_on = tell_known(split, known)
    told = tell(run.speaker, split)
    result = SpeakerEvaluation(
        {split.name: bleu(told)}, {split.name: len(told)}, "", run.step, split.synthesised
    )
    spoken = result_path(run.folder, "instructions", measured, generated=generated)
    lines = [{"instr_id": one.instr_id, "instruction": one.said, "read": one.references} for one in told]
    write_atomic(spoken, (json.dumps(lines, indent=1) + "\n").encode())
    path = result_path(run.folder, "evaluation", measured, generated=generated)
    figures: dict[str, Any] = {
        "checkpoint": run.checkpoint,
        "bleu": dict(result.bleu),
        "paths": dict(result.counts),
        "trained_on": trained_on,
        "features_synthesised": split.synthesised,
        "instructions": spoken.name,
        "world_seed": config.world_seed,
    }
    write_evaluation(
        path,
        figures,
        step=run.step,
        seconds=run.seconds,
        measured_on={split.name: measured},
        seed=config.seed,
    )
    return f"{result}\n{another_line(measured, run.step, path)}instructions: {spoken}\n"


def check_paths(split: Split) -> None:
    """Check that there is a path to describe in every item, and that a speaker can describe it.

    Raises:
        DataError: naming source and item.
    """
    for item in split.items:
        if len(item.path) < 2:
            raise DataError(
                f"{split.source}: item {item.instr_id!r} holds only the start: it has no path to describe"
            )
    check_ways(split)
