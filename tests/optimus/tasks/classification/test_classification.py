"""Classifiers on latents: known separations, paired choices, intervals, files, commands."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fq_toolkit import cli
from fq_toolkit.optimus.data.labels import Labelled, LabelledCorpus
from fq_toolkit.optimus.tasks.classification import classification, latent_plot
from fq_toolkit.optimus.tasks.classification.classification import (
    Result,
    choose,
    encode_features,
    feature_accuracy,
    finetuned_accuracy,
    interval,
    low_resource_curve,
    paired_differences,
    summarize,
    untrained,
)
from fq_toolkit.optimus.tasks.classification.runs import classify_run, write_classification
from fq_toolkit.training.errors import ConfigError
from tests.optimus.toys import toy_vae

NOUNS = {0: ["man", "girl", "horse"], 1: ["dogs", "snow", "play"]}


def _corpus(size=40, *, seed=0):
    """Sentences whose words tell the label."""
    random = np.random.default_rng(seed)
    labels = np.arange(size) % 2
    texts = [f"{random.choice(NOUNS[label])} {random.choice(['a', 'the', 'in'])} ." for label in labels]
    return Labelled(texts, labels)


@pytest.fixture(scope="module")
def vae():
    return toy_vae(dropout=0.0)


@pytest.fixture
def corpus():
    return LabelledCorpus(_corpus(60), _corpus(30, seed=1), ["people", "others"], {})


def test_features_are_those_of_the_model(vae):
    texts = _corpus(7).texts
    features = encode_features(vae, texts, batch_size=3)
    torch.testing.assert_close(features.mean, vae.encode(texts).mean)
    torch.testing.assert_close(vae.linear(features.pooled).chunk(2, -1)[0], features.mean)
    assert not features.mean.requires_grad


def test_an_untrained_encoder_is_another_one_and_the_model_stays(vae):
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    fresh, again = untrained(vae), untrained(vae)
    texts = _corpus(4).texts
    assert torch.equal(fresh.encode(texts).mean, again.encode(texts).mean)
    assert not torch.allclose(fresh.encode(texts).mean, vae.encode(texts).mean)
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())


@given(st.integers(2, 4), st.integers(1, 6), st.integers(0, 99))
def test_chosen_rows_are_balanced_nested_and_the_seeds(classes, per_class, seed):
    labels = np.random.default_rng(seed).permutation(np.arange(10 * classes) % classes)
    rows = choose(labels, per_class, seed=seed)
    assert len(set(rows.tolist())) == per_class * classes
    assert np.array_equal(np.bincount(labels[rows]), np.full(classes, per_class))
    assert set(rows) <= set(choose(labels, per_class + 2, seed=seed))
    assert np.array_equal(rows, choose(labels, per_class, seed=seed))


def test_too_few_labels_are_refused():
    with pytest.raises(ConfigError, match="label 1 has 2 sentences, and 3"):
        choose(np.array([0, 0, 0, 1, 1]), 3, seed=0)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 99), st.floats(0.01, 100.0), st.floats(-100, 100))
def test_separable_features_are_separated_at_any_scale(seed, scale, offset):
    random = torch.Generator().manual_seed(seed)
    labels = np.arange(40) % 2
    x = torch.randn(40, 3, generator=random) * 0.1
    x[:, 0] += torch.from_numpy(labels) * 4 - 2
    assert feature_accuracy(x[:20] * scale + offset, labels[:20], x[20:] * scale + offset, labels[20:]) == 1
    assert feature_accuracy(x[:20], labels[:20], x[20:], 1 - labels[20:]) == 0


def test_features_without_spread_are_no_trouble():
    x = torch.tensor([[0.0, 5.0], [1.0, 5.0]])
    assert feature_accuracy(x, np.array([0, 1]), x, np.array([0, 1])) == 1


@pytest.mark.parametrize("latent", [True, False])
def test_fine_tuning_learns_and_leaves_the_model_alone(vae, latent, monkeypatch):
    monkeypatch.setattr(classification, "_LR", 1e-2)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    state = torch.get_rng_state()
    train, test = _corpus(24), _corpus(16, seed=2)
    one, two = (finetuned_accuracy(vae, train, test, latent=latent, steps=25, seed=3) for _ in range(2))
    assert one == two >= 0.9
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())
    assert all(p.requires_grad for p in vae.parameters())


def test_the_curve_has_every_arm_size_and_seed(vae, corpus):
    models = {"VAE": vae, "other": untrained(vae)}
    results = low_resource_curve(
        models, corpus.train, corpus.valid, per_class=(1, 8), seeds=range(2), finetune_steps=1
    )
    arms = {"latent, VAE", "pooled, VAE", "pooled, other"}
    arms |= {f"{arm}, fine-tuned" for arm in arms}
    assert {(row.arm, row.per_class, row.seed) for row in results} == {
        (arm, n, seed) for arm in arms for n in (1, 8) for seed in (0, 1)
    }
    by_arm = {row.arm: row.accuracy for row in results if (row.per_class, row.seed) == (8, 0)}
    rows = choose(corpus.train.labels, 8, seed=0)
    part = corpus.train.take(rows)
    alone = feature_accuracy(
        encode_features(vae, part.texts).mean, part.labels,
        encode_features(vae, corpus.valid.texts).mean, corpus.valid.labels,
    )  # fmt: skip
    assert by_arm["latent, VAE"] == alone


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_intervals_are_students(values):
    mean, low, high = interval(values)
    assert mean == pytest.approx(np.mean(values))
    if np.std(values) > 1e-9:
        wanted = stats.t.interval(0.95, len(values) - 1, loc=mean, scale=stats.sem(values))
        assert (low, high) == pytest.approx(wanted)


def test_one_seed_has_no_interval_and_differences_are_paired():
    rows = [Result("a", 1, 0, 0.5), Result("a", 1, 1, 0.9), Result("b", 1, 0, 0.4), Result("b", 1, 1, 0.8)]
    (difference,) = paired_differences(rows, "a", "b")
    assert (difference.mean, difference.low, difference.high) == pytest.approx((0.1, 0.1, 0.1))
    assert math.isnan(summarize(rows[:1])[0].low)
    assert paired_differences(rows, "a", "c") == []


@pytest.fixture
def run(tmp_path, vae, monkeypatch):
    """A folder that holds a model as a run does."""
    for name in ("runs", "commands"):
        monkeypatch.setattr(
            f"fq_toolkit.optimus.tasks.classification.{name}.load_model", lambda path, checkpoint=None: vae
        )
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text('{"trainer": "optimus"}')
    return folder


def test_files_hold_the_table(run, corpus, tmp_path):
    found = classify_run(run, corpus, per_class=(1, 4), seeds=2, finetune_steps=0, test_sentences=20)
    assert found.majority == 0.5
    assert "| latent, VAE |" in str(found)
    assert "latent, VAE - pooled, VAE, points: 1 labels" in str(found)
    options = {"data": "x"}
    record, picture = write_classification(found, corpus, tmp_path / "out", options=options)
    values = json.loads(record.read_text())
    assert values["test_sentences"] == 20
    assert len(values["results"]) == 3 * 2 * 2
    assert values["versions"]["torch"] == torch.__version__
    assert picture.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    "wrong", [{"seeds": 0}, {"per_class": ()}, {"per_class": (0,)}, {"test_sentences": 0}]
)
def test_wrong_numbers_are_refused(run, corpus, wrong):
    options = {"per_class": (1,), "seeds": 1, "finetune_steps": 0, "test_sentences": 5} | wrong
    with pytest.raises(ConfigError, match="expected at least"):
        classify_run(run, corpus, **options)


def test_two_runs_of_one_name_are_refused(run, corpus, tmp_path):
    with pytest.raises(ConfigError, match="two runs are called 'same'"):
        classify_run(
            run, corpus, against=[tmp_path / "a" / "same", tmp_path / "b" / "same"], per_class=(1,), seeds=1,
            finetune_steps=0, test_sentences=5,
        )  # fmt: skip


def test_the_commands_write_beside_the_run(run, capsys):
    words = ["classify", str(run), "--per-class", "1", "2", "--seeds", "1", "--finetune-steps", "1"]
    assert cli.main([*words, "--test-sentences", "30"]) == 0
    assert "labels per class | 1 | 2 |" in capsys.readouterr().out
    assert (run / "classification.json").is_file()
    assert cli.main(["plot-latents", str(run), "--sentences", "25"]) == 0
    assert "latents.png (25 sentences)" in capsys.readouterr().out
    assert (run / "latents.png").read_bytes()[:4] == b"\x89PNG"
    assert cli.main(["plot-latents"]) == 2
    assert "plot-latents needs a run folder" in capsys.readouterr().err


def test_the_plane_keeps_clusters_apart_and_is_the_seeds():
    random = np.random.default_rng(0)
    latents = np.concatenate([random.normal(0, 0.1, (20, 5)), random.normal(8, 0.1, (20, 5))]).astype("f4")
    points = latent_plot.embed_in_plane(latents, seed=1)
    near = np.linalg.norm(points[:20] - points[:20].mean(0), axis=1).max()
    assert np.linalg.norm(points[:20].mean(0) - points[20:].mean(0)) > 2 * near
    assert np.array_equal(points, latent_plot.embed_in_plane(latents, seed=1))
    with pytest.raises(ConfigError, match="at least 5"):
        latent_plot.embed_in_plane(latents[:4])
