"""Files that parse and still mean nothing, or something else than was written."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest

from fq_toolkit.cli import main
from fq_toolkit.prevalent import (
    DataError,
    FeatureStore,
    MiniWorld,
    NavWorld,
    PrevalentModel,
    Vocabulary,
    score_hanna,
    score_ndh,
    score_r2r,
)
from fq_toolkit.prevalent.model.config import PrevalentConfig
from fq_toolkit.prevalent.model.speaker import Speaker


def custom_world() -> NavWorld:
    """Return a world whose names hold underscores."""
    graph = nx.Graph([("room_1", "room_2"), ("room_2", "hall")])
    places = {"room_1": (0, 0, 0), "room_2": (0, 3, 0), "hall": (3, 3, 0)}
    nx.set_node_attributes(graph, places, "position")
    return NavWorld.from_networkx({"my_house": graph})


def test_features_come_back_under_the_names_they_were_saved_with(tmp_path: Path) -> None:
    store = FeatureStore.synthetic(custom_world(), dim=4)
    read = FeatureStore.from_npz(store.save_npz(tmp_path / "a.npz"))
    assert read.keys == store.keys
    np.testing.assert_array_equal(
        read.panorama(read.rows(store.keys)), store.panorama(store.rows(store.keys)).astype(np.float16)
    )


def store_of(folder: Path, kind: str, rows: np.ndarray) -> np.ndarray:
    """Write one panorama to a file of a kind, and read it."""
    if kind == "tsv":
        cells = ["s", "v", "1", "1", "60", base64.b64encode(rows.tobytes()).decode()]
        (folder / "a.tsv").write_text("\t".join(cells) + "\n")
        store = FeatureStore.from_tsv(folder / "a.tsv")
    elif kind == "npz":
        store = FeatureStore.from_npz(FeatureStore([("s", "v")], rows[None]).save_npz(folder / "a.npz"))
    else:
        with pytest.importorskip("h5py").File(folder / "a.hdf5", "w") as file:
            file["s_v"] = rows
        store = FeatureStore.from_hdf5(folder / "a.hdf5")
    return store.panorama(np.array([0]))[0]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
@pytest.mark.parametrize("kind", ["tsv", "hdf5", "npz"])
def test_features_have_their_values_or_are_named(tmp_path: Path, kind: str, value: float) -> None:
    """Half precision ends at 65504: what is larger became infinite without a word."""
    rows = np.ones((36, 4), dtype=np.float32)
    np.testing.assert_array_equal(store_of(tmp_path, kind, rows), rows)
    (tmp_path / f"a.{kind}").unlink()
    rows[7, 2] = value
    if kind == "hdf5" and np.isfinite(value):  # read as float32
        np.testing.assert_array_equal(store_of(tmp_path, kind, rows), rows)
        return
    with pytest.raises(DataError, match=r"s_v.*finite"):
        store_of(tmp_path, kind, rows)
    assert not (tmp_path / "a.npz").exists()


@pytest.mark.parametrize(
    "arrays",
    [
        {"keys": np.array("s_v"), "features": np.ones((1, 36, 4))},
        {"keys": np.array(["s_v"]), "features": np.ones((1, 36, 0))},
        {"keys": np.array([["s", "v", "w"]]), "features": np.ones((1, 36, 4))},
    ],
)
def test_an_npz_of_other_arrays_is_named(tmp_path: Path, arrays: dict[str, Any]) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=r"a\.npz"):
        FeatureStore.from_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("value", ["false", float("nan"), 0.5, None, [], 2])
def test_only_true_and_false_are_edges(tmp_path: Path, value: Any) -> None:
    """A text such as "false" was an edge."""
    custom_world().to_connectivity_json(tmp_path)
    path = tmp_path / "my_house_connectivity.json"
    records = json.loads(path.read_text())
    records[0]["unobstructed"][1] = records[1]["unobstructed"][0] = value
    path.write_text(json.dumps(records))
    with pytest.raises(DataError, match=r"my_house_connectivity\.json"):
        NavWorld.from_connectivity(tmp_path).scan("my_house")


@pytest.mark.parametrize("score", [score_r2r, score_ndh, score_hanna])
def test_nothing_has_no_score(tmp_path: Path, score: Callable[..., Any]) -> None:
    path = tmp_path / "empty.json"
    path.write_text("[]")
    with pytest.raises(DataError, match=r"empty\.json.*no instruction"):
        score(path, path, MiniWorld(0, num_scans=1))


@pytest.fixture(scope="module")
def speaker_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("speaker") / "run"
    words = "--steps 1 --batch-size 2 --scans 1 --train-items 4 --validation-items 2 --feature-dim 8"
    assert main(["train", "speaker", "--out", str(run), "--device", "cpu", *words.split()]) == 0
    return run


@pytest.mark.parametrize("content", ['{"step":', "[]", ""])
def test_a_damaged_evaluation_of_a_speaker_is_named(
    speaker_run: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = speaker_run / "evaluation.json"
    kept = file.read_text()
    file.write_text(content)
    # With its checkpoints removed, the file alone says which step the weights in speaker/ are of.
    checkpoints = (speaker_run / "checkpoints").rename(speaker_run / "aside")
    try:
        assert main(["evaluate", str(speaker_run)]) == 1
    finally:
        file.write_text(kept)
        checkpoints.rename(speaker_run / "checkpoints")
    assert str(file) in capsys.readouterr().err
    assert main(["evaluate", str(speaker_run)]) == 0


def test_augment_refuses_before_the_work(
    speaker_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fq_toolkit.prevalent.tasks.speaker import augment

    monkeypatch.setattr(augment, "augment_records", lambda *_, **__: pytest.fail("the work was done"))
    for words, status in (
        (["--out", str(tmp_path / "a.json"), "--seed", "-1"], 2),
        (["--out", str(tmp_path / "none" / "a.json")], 1),
        (["--out", str(tmp_path)], 1),
    ):
        assert main(["augment", str(speaker_run), *words]) == status
        assert "fq-toolkit:" in capsys.readouterr().err


def test_augment_keeps_off_all_held_out_paths_of_a_run_with_a_limit(tmp_path: Path) -> None:
    """A limit is for trials; what is held out is held out."""
    world, folder = MiniWorld(0, num_scans=1, feature_dim=8), tmp_path / "data"
    records = json.loads(world.write(folder, 120, instructions=1).read_text())
    unique = list({tuple(record["path"]): record for record in records}.values())
    (folder / "R2R_train.json").write_text(json.dumps(unique[:2]))
    (folder / "R2R_val_seen.json").write_text(json.dumps(unique[2:]))
    for file in folder.glob("*_connectivity.json"):
        (tmp_path / "graphs").mkdir(exist_ok=True)
        file.rename(tmp_path / "graphs" / file.name)
    graphs = tmp_path / "graphs"
    if not graphs.exists():
        world.to_connectivity_json(graphs)
    run, out = tmp_path / "run", tmp_path / "more.json"
    words = ["--data", str(folder), "--connectivity", str(graphs), "--limit", "1", "--steps", "1"]
    options = ["--batch-size", "2", "--feature-dim", "8", "--device", "cpu", "--out", str(run)]
    assert main(["train", "speaker", *words, *options]) == 0
    free = ["--paths", "60", "--min-edges", "2", "--max-edges", "9", "--min-length", "1"]
    assert main(["augment", str(run), "--out", str(out), *free]) == 0
    drawn = {tuple(record["path"]) for record in json.loads(out.read_text())}
    assert not drawn & {tuple(record["path"]) for record in unique[2:]}


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_weights_of_losses_are_numbers(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "prevalent", "--loss-weights", value, "1", "--print-config"]) == 2
    assert "loss_weights" in capsys.readouterr().err


@pytest.mark.parametrize("tokens", [-1, 1])
@pytest.mark.parametrize("trainer", ["r2r", "ndh", "hanna"])
def test_a_pretrained_model_with_the_words_of_another_is_refused(
    tmp_path: Path, trainer: str, tokens: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a word less, the next new word got the row of another; with one more, it had none."""
    world = MiniWorld(0, num_scans=1, feature_dim=8)
    words = Vocabulary.train(item.instruction for item in world.items(8))
    sizes = PrevalentConfig.tiny(vocab_size=len(words), vision_size=8 + 128)
    folder = PrevalentModel(sizes).save_pretrained(tmp_path / "model")
    options = "--steps 1 --batch-size 2 --scans 1 --train-items 4 --validation-items 2 --feature-dim 8"
    start = ["train", trainer, "--pretrained", str(tmp_path), "--device", "cpu", *options.split()]
    words.save(folder / "vocabulary.json")
    assert main([*start, "--out", str(tmp_path / "run")]) == 0
    changed = [*words.tokens, "another"] if tokens == 1 else words.tokens[:-1]
    Vocabulary(changed).save(folder / "vocabulary.json")
    assert main([*start, "--out", str(tmp_path / "other")]) == 1
    assert "vocabulary.json" in capsys.readouterr().err


def test_settings_that_make_no_speaker_are_named(tmp_path: Path) -> None:
    folder = Speaker(Vocabulary.train(["go"]), feature_dim=8, hidden_size=4).save_pretrained(tmp_path)
    settings = json.loads((folder / "speaker.json").read_text())
    (folder / "speaker.json").write_text(json.dumps({**settings, "hidden_size": 3}))
    with pytest.raises(DataError, match="no speaker"):
        Speaker.from_pretrained(folder)
