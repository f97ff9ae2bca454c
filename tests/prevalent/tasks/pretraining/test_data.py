"""What pretraining reads: annotations, triplets, and the guard between training and validation."""

import dataclasses
import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from fq_toolkit.prevalent import (
    DataError,
    FeatureStore,
    MiniWorld,
    Triplet,
    Vocabulary,
    load_r2r,
    save_triplets,
)
from fq_toolkit.prevalent.tasks.pretraining.data import load_pretraining_data, mix
from fq_toolkit.training.errors import ConfigError
from tests.prevalent.tasks.pretraining.small import real, write_triplets


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
