"""The pretraining: steps as arrays, sources and guards, updates, resume, files."""

import dataclasses
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fq_toolkit import cli
from fq_toolkit.prevalent import (
    BatchedNavEnv,
    DataError,
    FeatureStore,
    MiniWorld,
    PrevalentModel,
    Triplet,
    Vocabulary,
    collect_triplets,
    load_r2r,
    save_triplets,
)
from fq_toolkit.prevalent.tasks.pretraining.benefit import measure_benefit
from fq_toolkit.prevalent.tasks.pretraining.config import PretrainingConfig, preset
from fq_toolkit.prevalent.tasks.pretraining.data import load_pretraining_data, mix
from fq_toolkit.prevalent.tasks.pretraining.evaluation import score_steps
from fq_toolkit.prevalent.tasks.pretraining.network import PretrainingNetwork
from fq_toolkit.prevalent.tasks.pretraining.runs import evaluate_run, load_run
from fq_toolkit.prevalent.tasks.pretraining.steps import PretrainingSteps
from fq_toolkit.prevalent.tasks.pretraining.training import PretrainingTask, build_pretraining, train
from fq_toolkit.training.errors import ConfigError, RunError
from fq_toolkit.training.session import make_accelerator
from fq_toolkit.training.storage.checkpoints import Checkpoints

SMALL = PretrainingConfig(
    scans=2, train_items=20, validation_items=6, hidden_size=16, num_heads=2, intermediate_size=32, steps=6,
    batch_size=8, log_every=2, checkpoint_every=3, evaluate_every=0, eval_steps=30, fine_tune=False,
    device="cpu", feature_dim=64, loss_weights=(1.0, 1.0),
)  # fmt: skip
LABELS = ("prevalent", "view36", "candidate")


def task(config: PretrainingConfig) -> PretrainingTask:
    return build_pretraining(config, make_accelerator(config))


@pytest.mark.parametrize("label", LABELS)
def test_steps_hold_what_an_environment_shows_on_the_way(label: str) -> None:
    world = MiniWorld(4)
    items, features = world.items(6), world.features()
    vocabulary = Vocabulary.train(item.instruction for item in items)
    triplets = collect_triplets(world, items, vocabulary.encode, kind=label)
    steps = PretrainingSteps(triplets, features, world if label == "candidate" else None)
    env = BatchedNavEnv(world, features, layout="blocked")
    number = 0
    for item in items:
        observation = env.reset([item])
        for target in [*item.path[1:], None]:
            batch = steps.batch(torch.tensor([number]))
            np.testing.assert_allclose(batch.views.numpy(), observation.view_features(), atol=1e-6)
            text = vocabulary.encode(item.instruction)
            assert batch.ids[0].tolist() == text[: batch.ids.shape[1]]
            assert not any(text[batch.ids.shape[1] :])
            scan = world.scan(item.scan)
            here = scan.locate(observation.viewpoints[0])
            slot = 0
            if target is not None:
                slot = 1 + int(np.nonzero(scan.neighbors[here] == scan.locate(target))[0][0])
            if label == "candidate":
                width = observation.action_mask.shape[1]
                assert batch.candidate_mask[0, :width].tolist() == observation.action_mask[0].tolist()
                np.testing.assert_allclose(
                    batch.candidates[:, :width].numpy(), observation.candidate_features(), atol=1e-5
                )
                assert batch.actions.item() == slot
            if target is not None:
                observation = env.step([slot]).observation
            number += 1
    assert number == len(steps)


def test_batches_are_cut_after_the_longest_instruction() -> None:
    world = MiniWorld(4)
    items = world.items(10)
    vocabulary = Vocabulary.train(item.instruction for item in items)
    steps = PretrainingSteps(collect_triplets(world, items, vocabulary.encode), world.features())
    batch = steps.batch(torch.arange(len(steps)))
    assert batch.ids.shape[1] == max(len(vocabulary.pieces(item.instruction)) for item in items) + 2
    assert batch.candidates is None


def test_one_forward_learns_both_tasks() -> None:
    config = dataclasses.replace(SMALL, action_label="candidate", steps=60, lr=5e-3, batch_size=32)
    pretraining = task(config)
    before = score_steps(pretraining.network, pretraining.data.train, pretraining.masker, limit=100)
    for step in range(config.steps):
        values = pretraining.step(step)
    after = score_steps(pretraining.network, pretraining.data.train, pretraining.masker, limit=100)
    assert after.mlm_loss < 0.8 * before.mlm_loss
    assert after.action_loss < 0.8 * before.action_loss
    assert after.word_accuracy > before.word_accuracy
    torch.testing.assert_close(values["loss/total"], values["loss/words"] + values["loss/action"])


def test_the_learning_rate_falls_to_zero_in_a_line() -> None:
    pretraining = task(dataclasses.replace(SMALL, steps=100, warmup=0.1, lr=1e-3))
    rates = [pretraining.learning_rate(step) for step in range(101)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[100] == 0
    assert np.diff(rates[10:]) == pytest.approx(-1e-5)
    assert max(rates) <= 1e-3
    released = dataclasses.replace(preset("released"), steps=100)
    pretraining.config = released
    assert pretraining.learning_rate(0) == released.lr == 5e-5


def test_scoring_is_the_same_each_time_and_leaves_training_alone() -> None:
    pretraining = task(SMALL)
    state = torch.get_rng_state()
    first = score_steps(pretraining.network, pretraining.data.validation, pretraining.masker, limit=20)
    assert torch.equal(torch.get_rng_state(), state)
    second = score_steps(
        pretraining.network, pretraining.data.validation, pretraining.masker, limit=20, batch_size=7
    )
    assert first.steps == 20
    assert pretraining.network.training
    assert first.action_accuracy == second.action_accuracy  # masks differ with the batches, actions do not


@pytest.mark.parametrize("label", ["prevalent", "candidate"])
def test_resume_is_bit_exact(tmp_path: Path, label: str) -> None:
    config = dataclasses.replace(SMALL, action_label=label, dropout=0.1)
    whole = train(config, out=tmp_path / "whole")
    train(config, out=tmp_path / "parts", stop_after=4)
    parts = train(resume=tmp_path / "parts")
    states = [
        Checkpoints(tmp_path / name / "checkpoints").load().state["task"] for name in ("whole", "parts")
    ]
    assert states[0]["order"] == states[1]["order"]
    for name, value in states[0]["network"].items():
        assert torch.equal(value, states[1]["network"][name]), name
    assert str(whole.evaluation) == str(parts.evaluation)
    with pytest.raises(ConfigError, match="steps: 6 -> 9"):
        train(dataclasses.replace(config, steps=9), resume=tmp_path / "parts")


def test_a_run_leaves_a_model_that_can_be_read(tmp_path: Path) -> None:
    result = train(SMALL, out=tmp_path / "run")
    model = PrevalentModel.from_pretrained(tmp_path / "run")
    vocabulary = Vocabulary.from_file(tmp_path / "run" / "model" / "vocabulary.json")
    run = load_run(tmp_path / "run")
    assert model.config.vocab_size == len(vocabulary) == len(run.data.vocabulary)
    for name, value in run.network.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    record = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert record["word_accuracy"] == result.evaluation.scores.word_accuracy
    assert record["step"] == 6
    assert record["fine_tuned"] is None
    assert record["versions"]["torch"] == torch.__version__
    assert evaluate_run(run).scores == result.evaluation.scores
    with pytest.raises(ConfigError, match="expected at least 1"):
        evaluate_run(run, limit=0)
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    for column in ("loss/words", "loss/action", "held-out accuracy/words", "held-out accuracy/action"):
        assert column in header
    assert (tmp_path / "run" / "curves.png").stat().st_size > 1000


def test_the_commands_speak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = (
        "--scans 2 --train-items 20 --validation-items 6 --hidden-size 16 --num-heads 2 --steps 2".split()
    )
    options += "--intermediate-size 32 --batch-size 8 --eval-steps 20 --no-fine-tune --device cpu".split()
    assert cli.main(["train", "prevalent", *options, "--dry-run"]) == 0
    assert "Nothing was written" in capsys.readouterr().out
    assert cli.main(["train", "prevalent", *options, "--out", str(tmp_path / "run")]) == 0
    assert "masked words" in capsys.readouterr().out
    assert cli.main(["evaluate", str(tmp_path / "run")]) == 0
    assert "step 2: held-out paths" in capsys.readouterr().out
    assert cli.main(["train", "prevalent", "--data", str(tmp_path), "--connectivity", str(tmp_path)]) == 1
    assert "fq-toolkit: " in capsys.readouterr().err


def _inside(part: list[str], whole: list[str]) -> bool:
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


def real(folder: Path, **more: object) -> PretrainingConfig:
    """Write a world as real data comes and return options that read it."""
    world = MiniWorld(5, num_scans=3)
    world.to_connectivity_json(folder / "connectivity")
    world.features().save_npz(folder / "features.npz")
    records = world.annotations(40)
    train = records[:20]
    # Paths to measure with that are no part of a path to learn from: added data may not hold them.
    others = [r for r in records[20:] if not any(_inside(r["path"], seen["path"]) for seen in train)]
    splits = {"train": train, "val_seen": others[:5], "val_unseen": others[5:10]}
    for name, split in splits.items():
        (folder / f"R2R_{name}.json").write_text(json.dumps(split))
    given = {
        "data": str(folder),
        "connectivity": str(folder / "connectivity"),
        "features": str(folder / "features.npz"),
    }
    return dataclasses.replace(SMALL, **{**given, **more})


def test_real_annotations_are_trained_on(tmp_path: Path) -> None:
    data = load_pretraining_data(real(tmp_path))
    assert len(data.train) == sum(len(item.path) for item in load_r2r(tmp_path / "R2R_train.json"))
    assert len(data.validation) == sum(len(item.path) for item in load_r2r(tmp_path / "R2R_val_unseen.json"))
    assert not data.features_synthesised
    noise = load_pretraining_data(real(tmp_path, features="synthetic", feature_dim=8))
    assert noise.features_synthesised
    assert "features synthesised" in noise.description
    assert noise.train.vision_size == 8 + 128


def test_instructions_that_are_cut_are_counted(tmp_path: Path) -> None:
    config = real(tmp_path)
    assert "cut at" not in load_pretraining_data(config).description

    def lengthen(name: str, *words: int) -> None:
        records = json.loads((tmp_path / name).read_text())
        for record, count in zip(records, words, strict=False):
            record["instructions"] = ["go " * count, *record["instructions"][1:]]
        (tmp_path / name).write_text(json.dumps(records))

    lengthen("R2R_train.json", 79, 78, 200)  # 78 words and [CLS], [SEP] fill 80 places
    lengthen("R2R_val_unseen.json", 500)
    message = r"R2R_train\.json: instruction '\d+_0' has 79 tokens, more than the limit of 78 \(one of 2 such"
    with pytest.raises(DataError, match=message):
        load_pretraining_data(config)
    with pytest.raises(DataError, match=r"R2R_val_unseen\.json: instruction '.*_0' has 500 tokens"):
        load_pretraining_data(dataclasses.replace(config, max_tokens=200))
    data = load_pretraining_data(dataclasses.replace(config, long_instructions="cut"))
    assert (data.cut, data.held_out_cut) == (2, 1)
    assert "cut at their end to 78 tokens: 2 train, 1 held out" in data.description
    raised = dataclasses.replace(config, max_tokens=500)
    whole = load_pretraining_data(raised)
    assert (whole.cut, whole.held_out_cut) == (0, 0)
    assert int((whole.validation.tokens != 0).sum(dim=1).max()) == 502
    assert raised.model_config(vocab_size=9, vision_size=9).max_positions == 502


def test_triplets_of_a_file_that_are_too_long_are_refused_or_cut_and_counted(tmp_path: Path) -> None:
    config = real(tmp_path)
    triplets, _ = write_triplets(tmp_path, config)
    config = dataclasses.replace(
        config,
        data=str(tmp_path / "train.json"),
        validation=str(tmp_path / "held_out.json"),
        vocabulary=str(tmp_path / "vocabulary.json"),
    )
    words = (2, *[5] * 90, 3)
    full = (2, *[5] * 78, 3)
    save_triplets(
        tmp_path / "train.json",
        [triplets[0]._replace(tokens=words), triplets[1]._replace(tokens=full), *triplets[2:]],
    )
    message = rf"train\.json: instruction '{triplets[0].instr_id}' has 90 tokens, more than the limit of 78"
    with pytest.raises(DataError, match=message):
        load_pretraining_data(config)
    data = load_pretraining_data(dataclasses.replace(config, long_instructions="cut"))
    assert (data.cut, data.held_out_cut, data.full) == (1, 0, 1)
    assert data.train.tokens[0].tolist() == data.train.tokens[1].tolist() == list(full)
    assert "cut at their end to 78 tokens: 1 train, 0 held out" in data.description
    assert "1 triplets fill all 80 places (perhaps cut when the file was made)" in data.description
    whole = load_pretraining_data(dataclasses.replace(config, max_tokens=90))
    assert whole.train.tokens[0].tolist() == list(words)
    assert whole.cut == 0


def test_a_validation_path_in_a_training_set_is_refused(tmp_path: Path) -> None:
    config = real(tmp_path)
    train_file, held_out = tmp_path / "R2R_train.json", tmp_path / "R2R_val_seen.json"
    leaked = json.loads(held_out.read_text())[2]
    train_file.write_text(json.dumps([*json.loads(train_file.read_text()), {**leaked, "path_id": 999}]))
    message = rf"R2R_train\.json: item '999_0' has the path of the held-out item '{leaked['path_id']}_0'"
    with pytest.raises(DataError, match=message):
        load_pretraining_data(config)
    # The same for synthesised annotations, and for files of triplets.
    config = real(tmp_path)
    (tmp_path / "more.json").write_text(json.dumps([{**leaked, "path_id": 998}]))
    with pytest.raises(DataError, match=r"more\.json: item '998_0' has the path of the held-out item"):
        load_pretraining_data(dataclasses.replace(config, augmented=str(tmp_path / "more.json")))


def write_triplets(folder: Path, config: PretrainingConfig) -> tuple[list[Triplet], list[Triplet]]:
    """Write triplets of the training and of the val_seen split, and their vocabulary."""
    from fq_toolkit.prevalent import NavWorld

    world = NavWorld.from_connectivity(str(config.connectivity))
    items = load_r2r(folder / "R2R_train.json")
    vocabulary = Vocabulary.train(item.instruction for item in items)
    vocabulary.save(folder / "vocabulary.json")
    real_ones = collect_triplets(world, items, vocabulary.encode)
    held_out = collect_triplets(world, load_r2r(folder / "R2R_val_seen.json"), vocabulary.encode)
    save_triplets(folder / "train.json", real_ones)
    save_triplets(folder / "held_out.json", held_out)
    return real_ones, held_out


def test_files_of_triplets_are_trained_on_and_guarded(tmp_path: Path) -> None:
    config = real(tmp_path)
    triplets, held_out = write_triplets(tmp_path, config)
    config = dataclasses.replace(
        config,
        data=str(tmp_path / "train.json"),
        validation=str(tmp_path / "held_out.json"),
        vocabulary=str(tmp_path / "vocabulary.json"),
    )
    data = load_pretraining_data(config)
    assert len(data.train) == sum(len(triplet.path) for triplet in triplets)
    assert len(data.validation) == sum(len(triplet.path) for triplet in held_out)
    with pytest.raises(DataError, match="give vocabulary"):
        load_pretraining_data(dataclasses.replace(config, vocabulary=None))
    with pytest.raises(ConfigError, match="a file of triplets needs it"):
        dataclasses.replace(config, validation=None)
    (tmp_path / "short.json").write_text(json.dumps(list(Vocabulary.train(["go"]).tokens)))
    with pytest.raises(DataError, match=r"has token \d+, but the vocabulary has 6"):
        load_pretraining_data(dataclasses.replace(config, vocabulary=str(tmp_path / "short.json")))
    save_triplets(tmp_path / "train.json", [*triplets, held_out[0]._replace(instr_id="leaked")])
    with pytest.raises(DataError, match=r"train\.json: item 'leaked' has the path of the held-out item"):
        load_pretraining_data(config)


def test_folders_and_lists_of_triplets_are_trained_on_as_one_file(tmp_path: Path) -> None:
    config = real(tmp_path)
    triplets, held_out = write_triplets(tmp_path, config)
    shared = {
        "data": "miniworld",
        "validation": str(tmp_path / "held_out.json"),
        "vocabulary": str(tmp_path / "vocabulary.json"),
    }
    for number in range(2):
        (tmp_path / f"part{number}").mkdir()
        plain = save_triplets(tmp_path / "plain", triplets[10 * number : 10 * number + 10])
        (tmp_path / f"part{number}" / "a.json.gz").write_bytes(gzip.compress(plain.read_bytes()))
    rest = save_triplets(tmp_path / "rest.json", triplets[20:])
    sources = (str(tmp_path / "part0"), str(tmp_path / "part1" / "a.json.gz"), str(rest))
    listed = dataclasses.replace(config, **shared, triplets=sources)
    one_file = dataclasses.replace(config, **{**shared, "data": str(tmp_path / "train.json")})
    assert load_pretraining_data(listed).fingerprint() == load_pretraining_data(one_file).fingerprint()
    with_more = dataclasses.replace(listed, triplets=sources[1:], augmented=sources[0])
    assert load_pretraining_data(with_more).synthesised == sum(len(t.path) for t in triplets[:10])
    save_triplets(tmp_path / "part0" / "b.json", held_out[:1])
    with pytest.raises(DataError, match=r"b\.json: item '.*' has the path of the held-out item"):
        load_pretraining_data(listed)
    with pytest.raises(ConfigError, match="a file of triplets needs it"):
        dataclasses.replace(listed, validation=None)
    with pytest.raises(ConfigError, match="leave out data"):
        dataclasses.replace(listed, data=str(tmp_path))


def test_synthesised_steps_are_added_at_the_rate_that_is_stated(tmp_path: Path) -> None:
    config = real(tmp_path)
    triplets, _ = write_triplets(tmp_path, config)
    save_triplets(tmp_path / "more.json", [t._replace(instr_id=f"more_{t.instr_id}") for t in triplets[:15]])
    (tmp_path / "more_r2r.json").write_text((tmp_path / "R2R_train.json").read_text())
    config = dataclasses.replace(config, vocabulary=str(tmp_path / "vocabulary.json"))
    added = load_pretraining_data(dataclasses.replace(config, augmented=str(tmp_path / "more.json")))
    plain = load_pretraining_data(config)
    extra = sum(len(triplet.path) for triplet in triplets[:15])
    assert (len(added.train), added.synthesised) == (len(plain.train) + extra, extra)
    assert f"{100 * extra / len(added.train):.1f} % synthesised" in added.description
    half = load_pretraining_data(
        dataclasses.replace(config, augmented=str(tmp_path / "more_r2r.json"), synthesised_share=0.5)
    )
    assert half.synthesised == len(plain.train) == len(half.train) // 2


@pytest.mark.parametrize(
    ("real_count", "made_count", "share"), [(20, 100, 0.5), (100, 20, 0.5), (64, 64, 0.9)]
)
def test_mixing_drops_what_is_too_many(real_count: int, made_count: int, share: float) -> None:
    def triplets(name: str, count: int) -> list[Triplet]:
        return [Triplet(f"{name}{i}", (), (), (), ()) for i in range(count)]

    kept, made = mix(triplets("r", real_count), triplets("s", made_count), share, seed=3)
    assert len(made) / (len(kept) + len(made)) == pytest.approx(share, abs=0.01)
    assert len(kept) == real_count or len(made) == made_count
    assert len({t.instr_id for t in kept + made}) == len(kept) + len(made)
    with pytest.raises(DataError, match="cannot be mixed"):
        mix([], made, share, seed=3)


def test_features_that_are_missing_are_named(tmp_path: Path) -> None:
    config = real(tmp_path)
    store = FeatureStore.from_npz(config.features)
    FeatureStore(store.keys[:-1], np.array(store.panorama(np.arange(len(store) - 1)))).save_npz(
        tmp_path / "few.npz"
    )
    scan, viewpoint = store.keys[-1]
    record = json.loads((tmp_path / "R2R_train.json").read_text())[0]
    neighbor = MiniWorld(5, num_scans=3).scan(scan)
    row = neighbor.locate(viewpoint)
    other = neighbor.viewpoints[int(neighbor.neighbors[row][neighbor.mask[row]][0])]
    record |= {"scan": scan, "path": [viewpoint, other], "path_id": 77}
    (tmp_path / "R2R_train.json").write_text(json.dumps([record]))
    with pytest.raises(
        DataError, match=rf"triplet '77_0': .*few\.npz: no features of viewpoint '{viewpoint}'"
    ):
        load_pretraining_data(dataclasses.replace(config, features=str(tmp_path / "few.npz")))
    with pytest.raises(ConfigError, match=r"expected 'synthetic' or a file ending in \.tsv"):
        load_pretraining_data(dataclasses.replace(config, features="features.bin"))


def test_a_checkpoint_of_another_size_and_a_missing_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run folder"):
        load_run(tmp_path / "absent")
    with pytest.raises(ConfigError, match=r"batch_size: .* rows do not fill a batch"):
        task(dataclasses.replace(SMALL, batch_size=5000))


def test_fine_tuning_compares_two_agents_and_changes_neither_model_nor_random_state() -> None:
    config = dataclasses.replace(
        SMALL, fine_tune=True, fine_tune_steps=2, fine_tune_items=20, action_label="candidate"
    )
    pretraining = task(config)
    for step in range(4):
        pretraining.step(step)
    model, state = pretraining.network.model, torch.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    benefit = measure_benefit(config, model, pretraining.data.vocabulary)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert (benefit.steps, benefit.instructions) == (2, 200)
    assert benefit.pretrained != benefit.scratch
    assert 0 <= benefit.pretrained.SPL <= benefit.pretrained.SR <= 1
    assert "from scratch SR" in str(benefit)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_share": 0.0}, "mask_share is 0.0"),
        ({"lr": 1.0}, "lr is 1.0"),
        ({"loss_weights": (0.0, 0.0)}, "loss_weights are"),
        ({"synthesised_share": 0.5}, "give augmented too"),
        ({"augmented": "a.json", "synthesised_share": 1.0}, "0 < synthesised_share < 1"),
        ({"features": "a.npz"}, "miniworld makes its own features"),
        ({"connectivity": "c"}, "connectivity belongs to real data"),
        ({"data": "folder"}, "needs connectivity"),
        ({"fine_tune_steps": 0}, "fine_tune_steps is 0"),
    ],
)
def test_impossible_options_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SMALL, **change)
    with pytest.raises(ConfigError, match="did you mean 'released'"):
        preset("releasd")


def test_the_released_preset_has_the_released_size() -> None:
    config = preset("released")
    with torch.device("meta"):
        network = PretrainingNetwork(config, vocab_size=30522, vision_size=2048 + 128)
    assert sum(weight.numel() for weight in network.parameters()) == 156_701_022
