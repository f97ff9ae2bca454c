"""The speaker's trainer: the best weights are kept."""

from pathlib import Path

import pytest

from fq_toolkit.prevalent.model.speaker import Speaker
from fq_toolkit.prevalent.tasks.speaker.runs import load_speaker
from fq_toolkit.prevalent.tasks.speaker.training import SpeakerTask
from fq_toolkit.training.session import train
from fq_toolkit.training.storage.run_folder import RunFolder
from tests.prevalent.tasks.small_runs import RUNS, same


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
