"""Dialog: corpus and files, the shared space, metrics with known values, a run, the commands."""

import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit import cli
from fq_toolkit.optimus.data.dialogs import Dialogs, embedded_dialogs, load_dialogs, questions
from fq_toolkit.optimus.model.posterior import Posterior
from fq_toolkit.optimus.tasks.dialog.evaluation import f1, measure_responses, sample_bleu
from fq_toolkit.optimus.tasks.dialog.model import DialogBatch, DialogVAE, kl_between
from fq_toolkit.optimus.tasks.dialog.training import DIALOG_TRAINER, DialogConfig, DialogRows
from fq_toolkit.training import session
from fq_toolkit.training.errors import ConfigError
from tests.optimus.tasks.small_runs import assert_same_weights
from tests.optimus.toys import TEXTS, toy_vae

TINY = DialogConfig(
    steps=4, width=16, heads=2, layers=1, latent_size=6, batch_size=8, eval_rows=4, limit=100, log_every=1,
    checkpoint_every=2, lr_warmup=1, device="cpu", max_length=20, samples=3,
)  # fmt: skip


def test_the_embedded_answers_are_all_known_and_held_out_contexts_are_new():
    corpus = embedded_dialogs()
    assert not set(corpus.train.contexts) & set(corpus.valid.contexts)
    asked = questions()
    for part in (corpus.train, corpus.valid):
        for context, answers in part.grouped().items():
            (question,) = [known for known in asked if context.endswith(known)]
            assert set(answers) == set(asked[question])
    seen = {question for question in asked for context in corpus.train.contexts if context.endswith(question)}
    assert seen == set(asked)
    assert all(len(set(answers)) == len(answers) >= 2 for answers in asked.values())


def test_every_format_of_files(tmp_path):
    pairs = [(f"context {i // 2}", f"response {i}") for i in range(60)]
    table = tmp_path / "pairs.tsv"
    table.write_text("".join(f"{a}\t{b}\n" for a, b in pairs))
    lines = tmp_path / "pairs.jsonl"
    rows = [
        {"context": ["before", f"context {i}"], "response": [f"response {2 * i}", f"response {2 * i + 1}"]}
        for i in range(30)
    ]
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for path in (table, lines):
        corpus = load_dialogs(str(path))
        both = [*zip(*corpus.train, strict=True), *zip(*corpus.valid, strict=True)]
        assert sorted(both) == sorted(pairs)
        assert not set(corpus.train.contexts) & set(corpus.valid.contexts)
    assert "before __eou__ context 3" in load_dialogs(str(lines), turns=2).train.contexts
    dialogs = tmp_path / "dialogs.txt"
    dialogs.write_text("a __eou__ b __eou__ c __eou__\nd __eou__ e\nalone __eou__\n\n")
    corpus = load_dialogs(str(dialogs), str(dialogs))
    assert sorted(zip(*corpus.train, strict=True)) == [("a", "b"), ("b", "c"), ("d", "e")]
    assert corpus.skipped == {"dialogs of one turn": 2, "empty": 2}
    assert "a __eou__ b" in load_dialogs(str(dialogs), str(dialogs), turns=2).train.contexts


def test_what_cannot_be_used_is_counted_or_refused(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(
        b'{"context": "a", "response": "b"}\n{"context": 1}\n[]\n\xff\n{"context": " ", "response": "x"}\n'
    )
    corpus = load_dialogs(str(path), str(path))
    assert corpus.skipped == {
        "without 'context' and 'response'": 2, "not a JSON object": 2, "not UTF-8": 2, "empty": 2,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="has one context"):
        load_dialogs(str(path))
    path.write_text("")
    with pytest.raises(ConfigError, match="holds no pair"):
        load_dialogs(str(path))
    with pytest.raises(ConfigError, match="expected 'embedded' or a file"):
        load_dialogs("pairs.csv")
    with pytest.raises(ConfigError, match="leave out --valid"):
        load_dialogs("embedded", "x.tsv")


@given(st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_kl_between_gaussians_is_torchs(seed):
    generator = torch.Generator().manual_seed(seed)
    q, p = (Posterior(*torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)) for _ in range(2))
    normals = [torch.distributions.Normal(d.mean, d.std) for d in (q, p)]
    torch.testing.assert_close(kl_between(q, p), torch.distributions.kl_divergence(*normals))
    assert torch.equal(kl_between(q, q), torch.zeros(4, 3, dtype=torch.float64))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return DialogVAE(toy_vae(dropout=0.0), fusion=0.7, context_kl=0.3).eval()


def test_the_loss_is_that_of_the_docstring(model):
    context, response = model.base.batch(TEXTS), model.base.batch(TEXTS[::-1])
    torch.manual_seed(5)
    out = model(DialogBatch(context, response), beta=0.5, free_bits=0.0, deterministic=True)
    q = model.base.posterior(response.encoder_ids, response.encoder_mask)
    p = model.context_posterior(context.encoder_ids, context.encoder_mask)
    torch.manual_seed(5)
    share = torch.rand(3, 1)
    between = share * p.mean + (1 - share) * q.mean
    nll, fused = (model.base.nll(z, response.decoder_ids, response.decoder_mask) for z in (q.mean, between))
    wanted = nll + 0.7 * fused + 0.5 * (kl_between(q, p).sum(1) + 0.3 * p.kl().sum(1))
    torch.testing.assert_close(out.loss, wanted)
    torch.testing.assert_close(out.nll, nll)


def test_responses_come_from_the_contexts_posterior(model):
    batch = model.base.batch(TEXTS)
    with torch.no_grad():
        p = model.context_posterior(batch.encoder_ids, batch.encoder_mask)
    answers = model.respond(TEXTS, samples=4, generator=torch.Generator().manual_seed(3), max_new_tokens=5)
    assert [len(rows) for rows in answers] == [4, 4, 4]
    assert [rows[0] for rows in answers] == model.base.decode(p.mean, max_new_tokens=5)
    z = p.sample(torch.Generator().manual_seed(3), count=4)
    assert [rows[2] for rows in answers] == model.base.decode(z[2], max_new_tokens=5)


REFERENCES = ["the cup is red .", "the cup is blue ."]


def test_metrics_of_known_answers():
    perfect = measure_responses([REFERENCES], [REFERENCES], known=True)
    assert (perfect.bleu_precision, perfect.bleu_recall, perfect.right, perfect.found) == (100, 100, 1, 1)
    dull = measure_responses([REFERENCES[:1] * 4], [REFERENCES], known=True)
    assert (dull.bleu_precision, dull.right, dull.found, dull.right_from_mean) == (100, 1, 0.5, 1)
    assert dull.bleu_recall < 100
    assert dull.inter_dist1 == pytest.approx(5 / 20)
    assert dull.intra_dist1 == 1
    assert dull.bleu_f1 == pytest.approx(2 / (1 / 100 + 1 / dull.bleu_recall))
    mixed = measure_responses([["x y z", REFERENCES[1]]], [REFERENCES], known=True)
    assert (mixed.right, mixed.found, mixed.right_from_mean) == (0.5, 0.5, 0)
    assert measure_responses([REFERENCES], [REFERENCES], known=False).right is None
    with pytest.raises(ValueError, match="references for each context"):
        measure_responses([REFERENCES], [], known=False)


words = st.lists(st.sampled_from("a b c d e f".split()), min_size=1, max_size=6).map(" ".join)


@given(st.lists(words, min_size=1, max_size=4), st.lists(words, min_size=1, max_size=4))
@settings(deadline=None, max_examples=30)
def test_laws_of_bleu_over_samples(samples, references):
    score = sample_bleu(samples, references)
    assert 0 <= score.precision <= 100
    assert 0 <= score.recall <= 100
    again = sample_bleu(samples[::-1], references[::-1])
    assert again == pytest.approx(score)
    assert sample_bleu([*samples, *references], references).recall == 100
    assert sample_bleu(samples, [*samples, *references]).precision == 100
    one = sample_bleu(samples, references[:1])  # with one reference: mean and best, as the paper has it
    each = [sample_bleu([sample], references[:1]).precision for sample in samples]
    assert one.precision == pytest.approx(sum(each) / len(each))
    assert one.recall == pytest.approx(max(each))
    assert f1(0.0, 0.0) == 0


def test_pairs_of_which_one_is_too_long_are_left_out():
    tokenizers = toy_vae().tokenizers
    pairs = Dialogs(
        ["a man .", "dogs .", "a girl runs in the snow ."], ["dogs .", "a man rides a horse .", "a ."]
    )
    data = DialogRows(pairs, tokenizers, max_length=6)
    assert (data.too_long, data.lengths().tolist()) == (2, [4])
    batch = data.batch([0])
    assert tokenizers.encoder.decode(batch.context.encoder_ids[0], skip_special_tokens=True) == "a man ."
    assert tokenizers.decoder.decode(batch.response.decoder_ids[0], skip_special_tokens=True) == "dogs ."


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dialog") / "run"
    session.train(DIALOG_TRAINER, TINY, out=folder)
    return folder


def test_a_run_that_was_stopped_goes_on_bit_by_bit(run, tmp_path):
    session.train(DIALOG_TRAINER, TINY, out=tmp_path / "again", stop_after=3)
    session.train(DIALOG_TRAINER, resume=tmp_path / "again")
    assert_same_weights(run, tmp_path / "again")


def test_the_commands_work_on_a_run(run, capsys):
    before = json.loads((run / "evaluation.json").read_text())
    assert cli.main(["evaluate", str(run)]) == 0
    after = json.loads((run / "evaluation.json").read_text())
    assert (before["bleu_f1"], before["contexts"]) == (after["bleu_f1"], 4)
    assert "held-out contexts, 3 responses each" in capsys.readouterr().out
    assert cli.main(["sample", str(run), "do you like tea ?", "--count", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["do you like tea ?"] * 2
    assert cli.main(["sample", str(run)]) == 2
    assert "at least one context" in capsys.readouterr().err
    assert cli.main(["train", "optimus", "--task", "dialog", "--dry-run", "--device", "cpu"]) == 0
    assert "contexts to measure with" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong", [{"turns": 0}, {"samples": 0}, {"fusion": -0.1}, {"context_kl": float("nan")}]
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        dataclasses.replace(TINY, **wrong)
