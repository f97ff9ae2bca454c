"""Label-conditional generation: the model, the judge, a run that resumes bit by bit, the commands."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from fq_toolkit import cli
from fq_toolkit.optimus.data.labels import Labelled, load_labelled
from fq_toolkit.optimus.tasks.labels.evaluation import Judge, LabelEvaluator, _only_label_changed
from fq_toolkit.optimus.tasks.labels.model import LabelledBatch, LabelVAE
from fq_toolkit.optimus.tasks.labels.training import LABEL_TRAINER, LabelConfig, LabelledRows
from fq_toolkit.training import session
from fq_toolkit.training.errors import ConfigError
from tests.optimus.tasks.small_runs import assert_same_weights
from tests.optimus.toys import TEXTS, toy_vae

TINY = LabelConfig(
    steps=4, width=16, heads=2, layers=1, latent_size=6, batch_size=8, eval_rows=9, limit=100, log_every=1,
    checkpoint_every=2, lr_warmup=1, device="cpu", max_length=16,
)  # fmt: skip


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LabelVAE(toy_vae(dropout=0.0), 2, adversary=3.0).eval()


def _batch(model, labels):
    return LabelledBatch(model.base.batch(TEXTS), torch.tensor(labels))


def test_the_decoder_reads_latent_and_label(model):
    z = torch.randn(3, model.base.latent_size, generator=torch.Generator().manual_seed(1))
    for label in (0, 1):
        wanted = model.base.decode(z + model.labels.weight[label].detach(), max_new_tokens=6)
        assert model.write(z, torch.full((3,), label), max_new_tokens=6) == wanted
    means = model.base.encode(TEXTS).mean
    assert model.rewrite(TEXTS, torch.tensor([0, 1, 1]), max_new_tokens=6) == model.write(
        means, torch.tensor([0, 1, 1]), max_new_tokens=6
    )


def test_the_loss_is_the_vaes_the_classifiers_and_the_adversarys(model):
    batch = _batch(model, [0, 1, 0])
    out = model(batch, deterministic=True, beta=0.5)
    text = batch.text
    q = model.base.posterior(text.encoder_ids, text.encoder_mask)
    nll = model.base.nll(q.mean + model.labels(batch.labels), text.decoder_ids, text.decoder_mask)
    shares = model.reader(q.mean).softmax(1)
    learning = -shares[torch.arange(3), batch.labels].log()
    undecided = (0.5 * (0.5 / shares).log()).sum(1)  # KL(uniform || classifier)
    torch.testing.assert_close(out.loss, nll + 0.5 * q.kl().sum(1) + learning + 3.0 * undecided)


def test_classifier_and_encoder_each_follow_their_own_aim(model):
    batch = _batch(model, [0, 1, 0])
    bare = LabelVAE(model.base, 2).eval()
    bare.labels = model.labels
    encoder = model.base.linear.weight

    def gradient(of, parameter):
        return torch.autograd.grad(of(batch, deterministic=True).loss.sum(), parameter)[0]

    text = batch.text
    z = model.base.posterior(text.encoder_ids, text.encoder_mask).mean
    shares = model.reader(z).softmax(1)
    learning = -shares[torch.arange(3), batch.labels].log().sum()
    undecided = 3.0 * (0.5 * (0.5 / shares).log()).sum()
    weight = model.reader[0].weight
    (wanted,) = torch.autograd.grad(learning, weight, retain_graph=True)
    torch.testing.assert_close(gradient(model, weight), wanted)
    (wanted,) = torch.autograd.grad(undecided, encoder)
    got = gradient(model, encoder) - gradient(bare, encoder)
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)


def test_the_judge_knows_the_grammar():
    corpus = load_labelled("grammar")
    judge = Judge(corpus.train, corpus.valid)
    assert judge.accuracy > 0.99
    assert judge.share(corpus.valid.of(0), np.ones(len(corpus.valid.of(0)))) < 0.01


def test_what_counts_as_rewritten():
    before = "a happy girl runs ."
    assert _only_label_changed(before, "a sad girl runs .", "negative")
    assert _only_label_changed(before, "a lonely girl runs .", "negative")
    for wrong in ("a sad boy runs .", "a happy girl runs .", "sad ."):
        assert not _only_label_changed(before, wrong, "negative")


def test_the_evaluator_sees_a_perfect_and_a_useless_model():
    corpus = load_labelled("grammar")
    evaluator = LabelEvaluator(corpus, 30)

    class Oracle:
        """Writes real sentences of the label; rewrites by exchanging the words of the mood."""

        base = type("Base", (), {"latent_size": 4, "device": "cpu", "max_length": 16})()

        def write(self, z, labels, **options):
            return [corpus.valid.of(int(label))[i] for i, label in enumerate(labels)]

        def rewrite(self, texts, labels, **options):
            words = ("happy", "cheerful", "sad", "lonely")
            bare = [[word for word in text.split() if word not in words] for text in texts]
            return [
                f"{first} {('', 'happy ', 'sad ')[int(label)]}{' '.join(rest)}"
                for (first, *rest), label in zip(bare, labels, strict=True)
            ]

    figures = evaluator(Oracle())
    assert (figures.accuracy, figures.rewrite_accuracy) == (1, 1)
    assert (figures.known_accuracy, figures.known_rewrites) == (1, 1)
    assert figures.bleu == pytest.approx(100)
    assert set(figures.values()) == set(evaluator.columns)

    class Useless(Oracle):
        def write(self, z, labels, **options):
            return ["a girl runs ."] * len(labels)

        def rewrite(self, texts, labels, **options):
            return list(texts)

    figures = evaluator(Useless())
    assert figures.known_accuracy == figures.accuracy == pytest.approx(1 / 3)
    assert (figures.known_rewrites, figures.rewrite_accuracy) == (0, 0)
    assert (figures.self_bleu, figures.reconstruction_bleu) == (pytest.approx(100), pytest.approx(100))


def test_rows_that_are_too_long_are_left_out_with_their_labels():
    tokenizers = toy_vae().tokenizers
    rows = Labelled(["a man .", "a man rides a horse .", "dogs ."], np.array([2, 0, 1]))
    data = LabelledRows(rows, tokenizers, max_length=6)
    assert (data.too_long, data.lengths().tolist()) == (1, [5, 4])
    assert data.batch([1, 0]).labels.tolist() == [1, 2]
    other = LabelledRows(rows._replace(labels=np.array([2, 0, 0])), tokenizers, max_length=6)
    assert data.fingerprint() != other.fingerprint()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("label") / "run"
    session.train(LABEL_TRAINER, TINY, out=folder)
    return folder


def test_a_run_that_was_stopped_goes_on_bit_by_bit(run, tmp_path):
    session.train(LABEL_TRAINER, TINY, out=tmp_path / "again", stop_after=3)
    session.train(LABEL_TRAINER, resume=tmp_path / "again")
    assert_same_weights(run, tmp_path / "again")


def test_the_commands_work_on_a_run(run, capsys):
    before = json.loads((run / "evaluation.json").read_text())
    assert cli.main(["evaluate", str(run)]) == 0
    after = json.loads((run / "evaluation.json").read_text())
    assert {k: v for k, v in after.items() if k != "training_seconds"} == {
        k: v for k, v in before.items() if k != "training_seconds"
    }
    assert "sentences from the prior" in capsys.readouterr().out
    assert cli.main(["sample", str(run), "--count", "2", "--labels", "positive", "negative"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["positive"] * 2 + ["negative"] * 2
    assert cli.main(["sample", str(run), "--labels", "purple"]) == 2
    assert "known labels: neutral, positive, negative" in capsys.readouterr().err
    assert (run / "model" / "vae.json").is_file()
    assert cli.main(["train", "optimus", "--task", "label-conditional", "--dry-run", "--device", "cpu"]) == 0
    assert "labels neutral, positive, negative" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong", [{"adversary": -1.0}, {"eval_rows": 1}, {"lr": 0.0}, {"preset": "x"}, {"width": 15}]
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        dataclasses.replace(TINY, **wrong)
