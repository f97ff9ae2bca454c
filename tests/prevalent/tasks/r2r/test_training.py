"""Runs of the R2R trainer: resume, submission, decoding, exploration, an episode told and drawn."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from fq_toolkit.cli import main
from fq_toolkit.prevalent import NavWorld, score_r2r
from fq_toolkit.prevalent.model.follower import FollowerAgent
from fq_toolkit.prevalent.model.speaker import Speaker
from fq_toolkit.prevalent.tasks.navigate import choose_item, narrate, walk
from fq_toolkit.prevalent.tasks.r2r.data import load_r2r_data
from fq_toolkit.prevalent.tasks.r2r.evaluation import Decoder
from fq_toolkit.prevalent.tasks.r2r.training import R2R_TRAINER, R2RTask, fine_tune
from fq_toolkit.prevalent.tasks.runs import NavigatorRun, evaluate_run, load_navigator
from fq_toolkit.prevalent.tasks.top_view import draw_top_view
from fq_toolkit.prevalent.text.vocabulary import Vocabulary
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.session import make_accelerator, train
from tests.prevalent.tasks.r2r.small import TINY


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(R2R_TRAINER, TINY, out=tmp_path_factory.mktemp("r2r") / "run").run


@pytest.fixture(scope="module")
def run(finished: Path) -> NavigatorRun:
    return load_navigator(R2R_TRAINER, finished)


def test_a_run_can_be_stopped_and_goes_on_bit_by_bit(
    finished: Path, run: NavigatorRun, tmp_path: Path
) -> None:
    train(R2R_TRAINER, TINY, out=tmp_path / "run", stop_after=2)
    train(R2R_TRAINER, resume=tmp_path / "run")
    resumed = load_navigator(R2R_TRAINER, tmp_path / "run")
    pairs = zip(
        run.task.networks.state_dict().items(), resumed.task.networks.state_dict().items(), strict=True
    )
    for (name, one), (_, other) in pairs:
        assert torch.equal(one, other), name
    with pytest.raises(ConfigError, match="steps"):
        train(R2R_TRAINER, dataclasses.replace(TINY, steps=9), resume=finished)


def test_predictions_are_official_and_score_as_reported(
    finished: Path, run: NavigatorRun, tmp_path: Path
) -> None:
    split = run.task.validation["val_unseen"]
    records = [
        {
            "path_id": int(item.instr_id.partition("_")[0]),
            "scan": item.scan,
            "heading": item.heading,
            "path": list(item.path),
            "distance": 1.0,
            "instructions": [item.instruction],
        }
        for item in split.items
    ]
    annotations = tmp_path / "R2R_val_unseen.json"
    annotations.write_text(json.dumps(records))
    scores = score_r2r(finished / "predictions-val_unseen.json", annotations, split.world)
    reported = json.loads((finished / "evaluation.json").read_text())
    assert scores._asdict() == pytest.approx(reported["scores"]["val_unseen"])
    assert reported["features_synthesised"] is False
    for name in ("curves.png", "metrics.csv", "model/model.safetensors", "model/vocabulary.json"):
        assert (finished / name).stat().st_size > 0


@pytest.mark.parametrize("decoding", ["sample", "beam"])
def test_other_decodings_repeat_and_leave_training_as_it_was(run: NavigatorRun, decoding: str) -> None:
    before = torch.get_rng_state()
    run.task.decoder = Decoder(decoding, beam_width=2)  # type: ignore[arg-type, attr-defined]
    first, again = evaluate_run(run), evaluate_run(run)
    run.task.decoder = Decoder()  # type: ignore[attr-defined]
    assert first == again
    assert torch.equal(before, torch.get_rng_state())
    assert decoding in first
    assert "2002.10638" in first


def test_an_episode_is_told_and_drawn(run: NavigatorRun, tmp_path: Path) -> None:
    split, item = choose_item(run.task, "val_unseen", None)
    journey = walk(run.task, split, item)
    for choice in journey.choices:
        assert sum(chance for _, _, chance in choice.options) + choice.stop == pytest.approx(1, abs=1e-5)
    told = narrate(journey)
    assert told.count("->") == len(journey.choices)
    assert item.instruction in told
    assert split.world.landmark(item.scan, item.start) in told  # type: ignore[attr-defined]
    assert draw_top_view(journey, tmp_path / "top.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ConfigError, match="no split 'test'"):
        choose_item(run.task, "test", None)
    with pytest.raises(ConfigError, match="no instruction 'x_1'"):
        choose_item(run.task, "val_seen", "x_1")


def test_the_command_line_goes_from_training_to_navigating(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(finished), "--decoding", "beam", "--beam-width", "2"]) == 0
    assert "beam" in capsys.readouterr().out
    assert main(["navigate", str(finished), "--instruction", "to the sofa then stop ."]) == 0
    assert "to the sofa" in capsys.readouterr().out
    assert list(finished.glob("navigate-*.png"))
    assert main(["train", "r2r", "--pretrained", str(finished / "nothing")]) == 1


def test_fine_tuning_starts_from_the_model_it_is_given(run: NavigatorRun) -> None:
    config = dataclasses.replace(TINY, steps=1, a2c_weight=0.0)
    model, vocabulary = run.task.agent.model, run.task.agent.vocabulary
    before = model.embeddings.word_embeddings.weight.detach().clone()
    scores = fine_tune(config, model=model, vocabulary=vocabulary)
    assert set(scores) == {"val_seen", "val_unseen"}
    assert not torch.equal(before, model.embeddings.word_embeddings.weight)
    with pytest.raises(ValueError, match="together"):
        fine_tune(config, model=model)


def test_exploring_trains_on_what_the_speaker_says_of_the_unseen_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [item.instruction for item in load_r2r_data(TINY).train.items]
    speaker = Speaker(Vocabulary.train(texts), feature_dim=8, hidden_size=8, word_size=8)
    speaker.save_pretrained(tmp_path)
    config = dataclasses.replace(TINY, speaker=str(tmp_path), explore_from=0.0, a2c_weight=0.0)
    task = R2RTask(config, load_r2r_data(config), make_accelerator(config))
    read: list[str] = []
    original = FollowerAgent.read

    def watch(self, items):
        read.extend(item.scan for item in items)
        return original(self, items)

    monkeypatch.setattr(FollowerAgent, "read", watch)
    other = dataclasses.replace(config, feature_dim=12)
    with pytest.raises(ConfigError, match="features of width 8, the agent sees 12"):
        R2RTask(other, load_r2r_data(other), make_accelerator(other))
    unseen = set(task.validation["val_unseen"].world.names)
    for step in (0, 1):
        read.clear()
        task.step(step)
        assert bool(set(read) & unseen) == bool(step)


def test_real_graphs_and_texts_go_through(real_world: NavWorld, tasks: Path, shared_data: Path) -> None:
    config = dataclasses.replace(
        TINY,
        data=str(tasks),
        connectivity=str(shared_data / "vln" / "connectivity"),
        limit=6,
        steps=1,
        max_steps=3,
        feature_dropout=0.0,
    )
    data = load_r2r_data(config)
    task = R2RTask(config, data, make_accelerator(config))
    task.step(0)
    task.evaluate()
    assert "features synthesised" in str(task.last_evaluation)
