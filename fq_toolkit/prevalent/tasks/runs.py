"""Runs of the trainers of R2R, NDH and HANNA, read back from their folder and measured."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from fq_toolkit.prevalent.data.predictions import save_predictions
from fq_toolkit.prevalent.tasks.another_split import (
    Another,
    another_line,
    measured_set,
    open_another,
    result_path,
    tell_known,
)
from fq_toolkit.prevalent.tasks.navigator import NavigatorTask
from fq_toolkit.training.runs import open_saved
from fq_toolkit.training.seeding import isolated_rng
from fq_toolkit.training.session import Trainer, make_accelerator
from fq_toolkit.training.storage.best import Which
from fq_toolkit.training.storage.evaluation import write_evaluation
from fq_toolkit.training.storage.measured_data import check_measured, measured_line
from fq_toolkit.training.storage.run_folder import RunFolder


class NavigatorRun(NamedTuple):
    """A run read back: its task with the agent at one of its checkpoints.

    folder: its files.
    task: with the weights of the checkpoint.
    step: of the checkpoint.
    seconds: of training up to it.
    checkpoint: how it was asked for.
    """

    folder: RunFolder
    task: NavigatorTask
    step: int
    seconds: float
    checkpoint: Which


def load_navigator(trainer: Trainer[Any], path: Path, *, checkpoint: Which = "last") -> NavigatorRun:
    """Read a run folder.

    Args:
        trainer: whose run it is.
        path: the folder.
        checkpoint: ``"best"``, ``"last"`` or a step.

    Raises:
        RunError: when it is no run folder.
        CheckpointError: when the checkpoint is missing, damaged, of another model or of other data.
        ConfigError: when it is a run of another trainer.
        DataError: when what it was trained on is not there any more.
    """
    saved = open_saved(trainer.config_class, trainer.name, path, checkpoint=checkpoint)
    task: Any = trainer.build(saved.config, make_accelerator(saved.config))
    with saved.fitting():
        task.load_state(saved.state)
    task.networks.eval()
    return NavigatorRun(saved.folder, task, saved.step, saved.seconds, checkpoint)


def evaluate_run(run: NavigatorRun) -> str:
    """Measure a run again; write ``predictions-SPLIT.json`` and ``evaluation.json``.

    Returns:
        The figures and what they were measured on, for people.

    Raises:
        CheckpointError: when the validation splits are not those that the run was measured on.
    """
    check_measured(run.folder.checkpoints(), run.step, run.task.measured_on())
    run.task.evaluate()
    run.task.write_results(run.folder, step=run.step, seconds=run.seconds, checkpoint=run.checkpoint)
    return f"{run.task.last_evaluation}\n{measured_line(run.folder)}"


def evaluate_another(run: NavigatorRun, another: Another) -> str:
    """Measure a run on another split or file than its own; ``evaluation.json`` stays as it is.

    Figures go to ``evaluation-STEM-HASH.json`` and what is submitted to ``predictions-STEM-HASH.json``. Where
    the goals are secret there are no figures.

    Args:
        run: the run.
        another: what to measure on.

    Returns:
        The figures and what they were measured on, for people.

    Raises:
        DataError: for an annotation file that cannot be used, or views without features.
        ConfigError: for a split that there is not.
    """
    task, seed = run.task, run.task.config.seed
    own = {"train": task.train, **task.validation}
    split = open_another(another, task.config, task.dataset, own)
    # By identity: an annotation file may have the name of one of the run's splits.
    if not any(split is one for one in own.values()):
        split = task.adopt(split)
    # After adopt, because what a helper or planner adds decides the figures too.
    measured = measured_set(split, task.measured_parts(split))
    generated = another.generated(task.config)
    trained_on = tell_known(split, task.known_items(split))
    # As in training: an evaluation draws nothing from the streams of the run.
    with isolated_rng(0), torch.no_grad():
        records = task.predict(split)
    predictions = save_predictions(
        result_path(run.folder, "predictions", measured, generated=generated), records, id_field=task.id_field
    )
    count = len(split.items)
    figures: dict[str, Any] = {"checkpoint": run.checkpoint}
    secret = sum(not item.goals for item in split.items)
    if secret:
        said = (
            f"{split.source} keeps its goals secret ({secret} of {count} items hold only the start): there "
            "are no figures, and the predictions are for the challenge server"
        )
    else:
        scores = task.score(split, records)
        figures["scores"] = {split.name: scores._asdict()}
        said = str(task.report({split.name: scores}, {split.name: count}))
    figures |= {
        **task.more_figures([split.name]),
        "items": {split.name: count},
        "trained_on": trained_on,
        "instructions_cut": {split.name: task.cut.get(split.name, 0)},
        "features_synthesised": split.synthesised,
        "predictions": predictions.name,
        "world_seed": task.config.world_seed,
    }
    path = result_path(run.folder, "evaluation", measured, generated=generated)
    write_evaluation(
        path, figures, step=run.step, seconds=run.seconds, measured_on={split.name: measured}, seed=seed
    )
    if cut := task.cut.get(split.name):
        said += f"\n{task.side_cut} to {task.agent.max_tokens} tokens: {cut} of {count}"
    line = another_line(measured, run.step, path, verb="predicted" if secret else "measured")
    return f"{said}\n{line}predictions: {predictions}\n"
