"""Trainers of speaker, NDH and HANNA: tiny runs, exact resume, submissions in the official format."""

import dataclasses
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit.cli import main
from fq_toolkit.prevalent import MiniWorld, load_hanna, load_r2r, score_hanna, score_ndh
from fq_toolkit.prevalent.data.splits import Split
from fq_toolkit.prevalent.miniworld.dialogs import dialog_items, write_dialogs
from fq_toolkit.prevalent.miniworld.requests import write_requests
from fq_toolkit.prevalent.model.speaker import Speaker
from fq_toolkit.prevalent.tasks.baselines import BASELINES, baseline_records
from fq_toolkit.prevalent.tasks.hanna.config import HannaConfig
from fq_toolkit.prevalent.tasks.hanna.config import preset as hanna_preset
from fq_toolkit.prevalent.tasks.hanna.training import HANNA_TRAINER
from fq_toolkit.prevalent.tasks.navigate import narrate, walk
from fq_toolkit.prevalent.tasks.ndh.config import NDHConfig
from fq_toolkit.prevalent.tasks.ndh.config import preset as ndh_preset
from fq_toolkit.prevalent.tasks.ndh.data import load_ndh_data
from fq_toolkit.prevalent.tasks.ndh.training import NDH_TRAINER
from fq_toolkit.prevalent.tasks.pretraining.config import PretrainingConfig
from fq_toolkit.prevalent.tasks.r2r.config import preset as r2r_preset
from fq_toolkit.prevalent.tasks.r2r.evaluation import score_split
from fq_toolkit.prevalent.tasks.runs import load_navigator
from fq_toolkit.prevalent.tasks.speaker.config import SpeakerConfig
from fq_toolkit.prevalent.tasks.speaker.config import preset as speaker_preset
from fq_toolkit.prevalent.tasks.speaker.runs import load_speaker
from fq_toolkit.prevalent.tasks.speaker.training import SPEAKER_TRAINER, SpeakerTask
from fq_toolkit.prevalent.text.length_limit import keep_end
from fq_toolkit.prevalent.text.vocabulary import Vocabulary
from fq_toolkit.prevalent.world.features import FEATURE_DIM
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.session import train
from fq_toolkit.training.storage.run_folder import RunFolder

SMALL: dict[str, Any] = {
    "scans": 1, "train_items": 8, "validation_items": 4, "steps": 4, "batch_size": 4, "log_every": 1,
    "checkpoint_every": 2, "evaluate_every": 2, "hidden_size": 16, "device": "cpu",
}  # fmt: skip
WALKS = {**SMALL, "max_steps": 4}
RUNS = {
    "speaker": (SPEAKER_TRAINER, SpeakerConfig(**SMALL, word_size=8)),
    "ndh": (NDH_TRAINER, NDHConfig(**WALKS)),
    "hanna": (HANNA_TRAINER, HannaConfig(**WALKS)),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a finished run of each trainer."""
    folder = tmp_path_factory.mktemp("runs")
    for name, (trainer, config) in RUNS.items():
        result = train(trainer, config, out=folder / name)
        assert result.step == 4
        assert result.evaluation is not None
    return {name: folder / name for name in RUNS}


def same(a: Any, b: Any) -> bool:
    """Return whether two states are equal bit by bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a if key != "seconds")
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.parametrize("name", list(RUNS))
def test_a_stopped_run_goes_on_bit_by_bit(name: str, runs: dict[str, Path], tmp_path: Path) -> None:
    trainer, config = RUNS[name]
    train(trainer, config, out=tmp_path / "run", stop_after=2)
    train(trainer, resume=tmp_path / "run")
    first, second = (
        RunFolder.open(path).checkpoints().load(4).state for path in (runs[name], tmp_path / "run")
    )
    assert same(first, second)
    figures = [json.loads((path / "evaluation.json").read_text()) for path in (runs[name], tmp_path / "run")]
    for record in figures:
        record.pop("training_seconds")
    assert figures[0] == figures[1]


@pytest.mark.parametrize("name", list(RUNS))
def test_a_run_leaves_what_its_trainer_says(name: str, runs: dict[str, Path]) -> None:
    for pattern in RUNS[name][0].artifacts:
        assert list(runs[name].glob(pattern.rstrip("/"))), pattern
    header, *rows = (runs[name] / "metrics.csv").read_text().splitlines()
    assert len(rows) == 4
    assert all(part in header for part in ("seconds", "loss/", "val_unseen"))


@pytest.mark.parametrize("name", list(RUNS))
def test_evaluate_repeats_the_figures(
    name: str, runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = runs[name] / "evaluation.json"
    before = json.loads(file.read_text())
    assert main(["evaluate", str(runs[name])]) == 0
    after = json.loads(file.read_text())
    key = "bleu" if name == "speaker" else "scores"
    assert after[key] == before[key]
    assert "val_unseen" in capsys.readouterr().out


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


def test_the_best_speaker_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = iter([{"val_unseen": 7.0}, {"val_unseen": 3.0}, {"val_unseen": 7.0}])
    monkeypatch.setattr(SpeakerTask, "measure", lambda self, speaker: next(found))
    trainer, config = RUNS["speaker"]
    result = train(trainer, config, out=tmp_path / "run")
    assert (result.evaluation.kept_step, result.evaluation.bleu) == (2, {"val_unseen": 7.0})
    checkpoints = RunFolder.open(tmp_path / "run").checkpoints()
    kept = dict(Speaker.from_pretrained(tmp_path / "run").state_dict())
    assert same(kept, checkpoints.load("best").state["task"]["speaker"])
    assert not same(kept, checkpoints.load("last").state["task"]["speaker"])
    for which, step in (("best", 2), ("last", 4), (2, 2)):
        trained = load_speaker(tmp_path / "run", checkpoint=which)  # type: ignore[arg-type]
        assert trained.step == step
        assert same(dict(trained.speaker.state_dict()), checkpoints.load(step).state["task"]["speaker"])


def test_a_speaker_of_an_older_version_goes_on_and_keeps_its_best(tmp_path: Path) -> None:
    """Older states brought the best weights along, beside the newest."""
    trainer, config = RUNS["speaker"]
    train(trainer, config, out=tmp_path / "run", stop_after=2)
    folder = RunFolder.open(tmp_path / "run")
    step, state = folder.checkpoints().load()
    _, about = folder.checkpoints().about()
    old = {name: value + 1 for name, value in state["task"]["speaker"].items()}
    state["task"] |= {
        "best": {"scores": {"val_unseen": 99.0}, "step": 1, "weights": old},
        "done": 2,
        "judged": 1,
    }
    for path in folder.checkpoint_folder.iterdir():
        path.unlink()
    folder.checkpoints().save(step, state, about)
    result = train(trainer, resume=tmp_path / "run")
    assert result.evaluation.kept_step == 1
    assert same(dict(Speaker.from_pretrained(tmp_path / "run").state_dict()), old)
    assert same(dict(load_speaker(tmp_path / "run").speaker.state_dict()), old)
    assert load_speaker(tmp_path / "run", checkpoint="last").step == 4


def test_augment_writes_training_data(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "more.json"
    assert main(["augment", str(runs["speaker"]), "--out", str(out), "--paths", "6", "--seed", "3"]) == 0
    assert f"{out}: 6 paths, 6 instructions" in capsys.readouterr().out
    config = RUNS["speaker"][1]
    world = MiniWorld(config.world_seed, num_scans=config.scans)
    assert len(load_r2r(out, world=world)) == 6
    assert main(["augment", str(runs["speaker"]), "--out", str(out), "--paths", "0"]) == 2
    assert "paths and instructions must be at least 1" in capsys.readouterr().err


def test_a_command_that_a_trainer_lacks_is_named(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["augment", str(runs["ndh"]), "--out", "x.json"]) == 2
    assert "`ndh`" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ndh", "hanna"])
def test_one_episode_is_told_and_drawn(
    name: str, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "way.png"
    assert main(["navigate", str(runs[name]), "--split", "train", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert out.read_bytes()[:4] == b"\x89PNG"
    assert told.count("->") == told.count("step ") >= 1
    assert ("goal progress" if name == "ndh" else "requests for help") in told
    capsys.readouterr()
    assert main(["navigate", str(runs[name]), "--item", "nobody", "--out", str(out)]) == 2
    assert "no instruction 'nobody'" in capsys.readouterr().err


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


def test_what_is_pretrained_with_no_options_goes_on_with_no_options() -> None:
    configs = [preset("mini") for preset in (r2r_preset, ndh_preset, hanna_preset, speaker_preset)]
    known = {(c.synthetic_dim, c.world_seed) for c in (*configs, PretrainingConfig())}
    assert known == {(FEATURE_DIM, 0)}
    assert configs[3].data_options() == dataclasses.replace(
        r2r_preset("mini"), validation_items=configs[3].validation_items, feature_dim=FEATURE_DIM
    )


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_baselines_walk_along_edges_and_the_shortest_path_scores_1(mini: MiniWorld, seed: int) -> None:
    split = Split("val", mini.items(4, seed=seed), mini, mini.features())
    for name in BASELINES:
        for item, record in zip(
            split.items, baseline_records(name, split, max_steps=8, seed=seed), strict=True
        ):
            places = [mini.scan(item.scan).locate(pose[0]) for pose in record["trajectory"]]
            assert places[0] == mini.scan(item.scan).locate(item.start)
            assert len(places) <= 9
            assert all(mini.scan(item.scan).adjacent[a, b] for a, b in pairwise(places))
    shortest = baseline_records("shortest path", split, max_steps=8)
    assert score_split(split, shortest).SPL == pytest.approx(1)


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


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (SpeakerConfig, {"hidden_size": 5}, "hidden_size is 5"),
        (SpeakerConfig, {"lr": 0.0}, "lr is 0.0"),
        (SpeakerConfig, {"feature_dropout": 1.0}, "feature_dropout is 1.0"),
        (SpeakerConfig, {"data": "folder"}, "connectivity belongs to a data folder"),
        (NDHConfig, {"steps": 0}, "steps is 0"),
        (NDHConfig, {"max_tokens": 79}, "max_tokens is 79; expected 1 to 78"),
        (NDHConfig, {"teacher_end": 1.5}, "teacher_end is 1.5"),
        (NDHConfig, {"connectivity": "folder"}, "connectivity belongs to a data folder"),
        (HannaConfig, {"uncertain": 2.0}, "uncertain is 2.0"),
        (HannaConfig, {"max_requests": -1}, "max_requests is -1"),
        (HannaConfig, {"routes": ("a.json",)}, "leave out routes"),
    ],
)
def test_impossible_options_are_refused(config: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**options)
