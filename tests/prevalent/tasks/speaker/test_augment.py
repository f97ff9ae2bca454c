"""Augmentation: paths of the right kind, in R2R's format, and never a held-out one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fq_toolkit.cli import main
from fq_toolkit.prevalent import BatchedNavEnv, DataError, FeatureStore, MiniWorld, load_r2r, sample_paths
from fq_toolkit.prevalent.model.speaker import Speaker, retell
from fq_toolkit.prevalent.tasks.speaker.augment import (
    FIRST_ID,
    augment,
    augment_records,
    sample_new_paths,
    training_world,
)
from fq_toolkit.prevalent.text.vocabulary import Vocabulary
from fq_toolkit.prevalent.world.environment_dropout import draw_feature_mask
from fq_toolkit.prevalent.world.items import NavItem
from tests.prevalent.tasks.small_runs import RUNS


@pytest.fixture(scope="module")
def speaker(mini: MiniWorld) -> Speaker:
    torch.manual_seed(0)
    vocabulary = Vocabulary.train(item.instruction for item in mini.items(20))
    return Speaker(vocabulary, feature_dim=64, hidden_size=16, word_size=8).eval()


def as_items(paths: list[tuple[str, list[str]]]) -> list[NavItem]:
    return [
        NavItem(f"{number}_0", scan, 0.0, tuple(path), (path[-1],), "")
        for number, (scan, path) in enumerate(paths)
    ]


def test_the_file_is_one_of_r2r(mini: MiniWorld, speaker: Speaker, tmp_path: Path) -> None:
    options = {"instructions": 2, "batch_size": 3}
    records = augment_records(mini, mini.features(), speaker, 7, 5, **options)
    path = tmp_path / "more.json"
    path.write_text(json.dumps(records))
    items = load_r2r(path, world=mini)
    assert items == augment(mini, mini.features(), speaker, 7, 5, **options)
    assert len(items) == 14
    assert items[0].instr_id == f"{FIRST_ID}_0"
    assert all(item.instruction for item in items)
    for record in records:
        assert 5 <= len(record["path"]) <= 7
        assert record["distance"] >= 5.0
        assert record["path"] == mini.shortest_path(record["scan"], record["path"][0], record["path"][-1])


def test_seeds_repeat_and_differ(mini: MiniWorld, speaker: Speaker) -> None:
    features = mini.features()
    first = augment(mini, features, speaker, 4, 1, sample=True)
    assert first == augment(mini, features, speaker, 4, 1, sample=True)
    assert first != augment(mini, features, speaker, 4, 2, sample=True)


def test_the_speaker_stays_in_its_mode(mini: MiniWorld, speaker: Speaker) -> None:
    speaker.train()
    augment(mini, mini.features(), speaker, 1, 0)
    assert speaker.training
    speaker.eval()


def test_held_out_paths_are_never_drawn(mini: MiniWorld) -> None:
    free = sample_new_paths(mini, 60, seed=0)
    secret = as_items(free[::2])
    hidden = {(item.scan, item.path) for item in secret}
    drawn = sample_new_paths(mini, 60, seed=0, held_out=secret)
    assert any((scan, tuple(path)) in hidden for scan, path in free)
    assert not any((scan, tuple(path)) in hidden for scan, path in drawn)
    assert len(drawn) == 60


def test_a_world_of_held_out_paths_alone_is_refused(mini: MiniWorld) -> None:
    small = MiniWorld(5, num_scans=1, rooms=(1, 6))
    paths = {(scan, tuple(path)) for scan, path in sample_paths(small, 3000, seed=1)}
    everything = [NavItem(str(n), scan, 0.0, path, (path[-1],), "") for n, (scan, path) in enumerate(paths)]
    with pytest.raises(DataError, match="not held out: are these the scans of a validation split"):
        sample_new_paths(small, 2, seed=0, held_out=everything)


def test_scans_of_validation_alone_are_left_out(mini: MiniWorld) -> None:
    training = [item for item in mini.items(20) if item.scan == mini.names[1]]
    world = training_world(mini, training)
    assert world.names == (mini.names[1],)
    assert {scan for scan, _ in sample_new_paths(world, 10, seed=0)} == {mini.names[1]}
    with pytest.raises(DataError, match="elsewhere"):
        training_world(mini, [training[0]._replace(scan="elsewhere")])


def test_features_of_another_width_are_refused(mini: MiniWorld, speaker: Speaker) -> None:
    other = MiniWorld(3, feature_dim=32)
    with pytest.raises(DataError, match="width 32; the speaker was trained on 64"):
        augment(other, other.features(), speaker, 1, 0)
    with pytest.raises(ValueError, match="at least 1"):
        augment(mini, mini.features(), speaker, 0, 0)


def test_back_translation_tells_through_the_shared_mask(mini: MiniWorld, speaker: Speaker) -> None:
    """Masking by hand what the speaker sees gives the same words as handing it the mask."""
    items = mini.items(5)
    mask = draw_feature_mask(64, 0.5, generator=torch.Generator().manual_seed(0))
    env = BatchedNavEnv(mini, mini.features(), device="cpu")
    told = retell(speaker, env, items, feature_mask=mask)
    assert [t._replace(instruction="") for t in told] == [i._replace(instruction="") for i in items]
    store = mini.features()
    masked = store.panorama(np.arange(len(store))) * mask.numpy()
    blurred = BatchedNavEnv(mini, FeatureStore(store.keys, masked), device="cpu")
    assert told == retell(speaker, blurred, items)


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


def test_fewer_paths_than_asked_for_are_said(caplog: pytest.LogCaptureFixture) -> None:
    world = MiniWorld(5, num_scans=1)
    everything = sample_new_paths(world, None, seed=0)
    assert "exist" not in caplog.text
    assert sorted(sample_new_paths(world, 10**5, seed=0)) == sorted(everything)
    assert f"100000 paths were asked for; only {len(everything)} different ones" in caplog.text


def test_no_path_inside_a_new_one_is_held_out() -> None:
    world = MiniWorld(5, num_scans=1)
    paths = sample_new_paths(world, None, seed=0)
    held = [NavItem(str(n), scan, 0.0, tuple(p), (p[-1],), "") for n, (scan, p) in enumerate(paths[:20])]
    for scan, path in sample_new_paths(world, None, seed=1, held_out=held):
        text = " ".join(path)
        assert not any(scan == other.scan and " ".join(other.path) in text for other in held)


def test_augment_writes_all_paths_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--steps 1 --batch-size 2 --scans 1 --train-items 4 --validation-items 2 --feature-dim 8"
    run, out = tmp_path / "run", tmp_path / "more.json"
    assert main(["train", "speaker", "--out", str(run), "--device", "cpu", *words.split()]) == 0
    counts = []
    for paths in ("all", "100000"):
        assert main(["augment", str(run), "--out", str(out), "--paths", paths]) == 0
        records = json.loads(out.read_text())
        counts.append(len({tuple(record["path"]) for record in records}))
        assert counts[-1] == len(records)
    assert counts[0] == counts[1]
    assert "all that there are; 100000 were asked for" in capsys.readouterr().out
