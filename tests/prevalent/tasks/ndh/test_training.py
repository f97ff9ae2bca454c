"""The NDH trainer."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from fq_toolkit.prevalent import MiniWorld, score_ndh
from fq_toolkit.prevalent.miniworld.dialogs import dialog_items, write_dialogs
from fq_toolkit.prevalent.tasks.ndh.data import load_ndh_data
from fq_toolkit.prevalent.text.length_limit import keep_end
from fq_toolkit.prevalent.text.vocabulary import Vocabulary
from tests.prevalent.tasks.small_runs import RUNS


def test_ndh_submissions_are_scored_officially(runs: dict[str, Path], tmp_path: Path) -> None:
    config = RUNS["ndh"][1]
    data = load_ndh_data(config)
    world = data.validation["val_unseen"].world
    found = json.loads((runs["ndh"] / "evaluation.json").read_text())["scores"]["val_unseen"]
    chosen = [int(item.instr_id) for item in data.validation["val_unseen"].items]
    assert isinstance(world, MiniWorld)
    everything = json.loads(write_dialogs(world, tmp_path / "all.json", 8, seed=3).read_text())
    annotations = tmp_path / "NDH_val_unseen.json"
    annotations.write_text(json.dumps([record for record in everything if record["inst_idx"] in chosen]))
    scores = score_ndh(runs["ndh"] / "predictions-val_unseen.json", annotations, world)
    assert scores._asdict() == pytest.approx(found)


def test_dialogs_lose_their_oldest_words(mini: MiniWorld) -> None:
    items = dialog_items(mini, 30, seed=1)
    vocabulary = Vocabulary.train(item.instruction for item in items)
    longest = max((item.instruction for item in items), key=len)
    cut = keep_end(longest, vocabulary, limit=20)
    assert longest.endswith(cut)
    assert len(vocabulary.pieces(cut)) == 20
    assert keep_end(longest, vocabulary, limit=10_000) == " ".join(longest.split())
    assert keep_end("one", vocabulary, limit=0) == ""


@pytest.mark.parametrize("target", ["planner", "player", "trusted"])
def test_the_target_decides_the_path(target: Any) -> None:
    data = load_ndh_data(dataclasses.replace(RUNS["ndh"][1], target=target))
    for item in data.train.items:
        assert item.goals == item.path[-1:]
    assert all(len(item.path) <= 4 for item in data.train.items) or target != "planner"
