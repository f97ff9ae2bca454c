"""The HANNA trainer."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fq_toolkit.prevalent import MiniWorld, load_hanna, score_hanna
from fq_toolkit.prevalent.miniworld.requests import write_requests
from fq_toolkit.prevalent.tasks.hanna.training import HANNA_TRAINER
from fq_toolkit.prevalent.tasks.navigate import narrate, walk
from fq_toolkit.prevalent.tasks.runs import load_navigator
from tests.prevalent.tasks.small_runs import RUNS


def test_hanna_submissions_are_scored_officially(runs: dict[str, Path], tmp_path: Path) -> None:
    from fq_toolkit.prevalent.tasks.hanna.data import load_hanna_data

    world = load_hanna_data(RUNS["hanna"][1]).validation["val_unseen"].world
    assert isinstance(world, MiniWorld)
    annotations = write_requests(world, tmp_path / "hanna_val_unseen.json", 4, seed=3)
    scores = score_hanna(runs["hanna"] / "predictions-val_unseen.json", annotations, world)
    record = json.loads((runs["hanna"] / "evaluation.json").read_text())
    assert scores._asdict() == pytest.approx(record["scores"]["val_unseen"])
    assert record["scores_without_help"]["val_unseen"]["requests"] == 0
    assert 0 <= scores.requests <= 3
    assert len(load_hanna(annotations)) == 4


def test_what_was_heard_is_told(runs: dict[str, Path]) -> None:
    task: Any = load_navigator(HANNA_TRAINER, runs["hanna"]).task
    split = task.validation["val_unseen"]
    with torch.no_grad():
        task.asker.score.bias.copy_(torch.tensor([-50.0, 50.0]))
    for item in split.items:
        journey = walk(task, split, item)
        asked = [choice.told for choice in journey.choices if choice.told is not None]
        assert len(asked) == journey.scores.requests >= 1  # type: ignore[attr-defined]
        assert narrate(journey).count("asks for help and hears") == len(asked)
        for here, there in zip(journey.choices, journey.choices[1:], strict=False):
            assert here.target == there.viewpoint
