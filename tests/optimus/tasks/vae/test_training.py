"""Training a sentence VAE: what one update computes, resume, what a run leaves behind."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from fq_toolkit.optimus.data import checked_cache
from fq_toolkit.optimus.data.corpus import load_corpus
from fq_toolkit.optimus.data.tokenizer_training import train_tokenizers
from fq_toolkit.optimus.model.building import small_networks
from fq_toolkit.optimus.model.sentence_vae import SentenceVAE
from fq_toolkit.optimus.tasks.runs import evaluate_run
from fq_toolkit.optimus.tasks.sentence_task import learning_rate
from fq_toolkit.optimus.tasks.vae.config import PRESETS, OptimusConfig, preset
from fq_toolkit.optimus.tasks.vae.runs import load_model
from fq_toolkit.optimus.tasks.vae.training import VAE_TRAINER, VAETask, build_task, train
from fq_toolkit.training.config import load_config
from fq_toolkit.training.errors import CheckpointError, ConfigError, DivergedError
from fq_toolkit.training.reporting.metrics_log import read_metrics
from fq_toolkit.training.session import dry_run
from fq_toolkit.training.storage.checkpoints import Checkpoints
from fq_toolkit.training.storage.packing import pack

TINY = OptimusConfig(
    limit=200, steps=4, layers=1, width=16, heads=2, latent_size=4, batch_size=8, lr_warmup=2, dropout=0.1,
    log_every=1, checkpoint_every=2, evaluate_every=3, eval_sentences=6, iw_samples=2, eval_analogies=6,
    autoencoder_warmup=0.25, device="cpu",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked_cache, "cache_folder", lambda: tmp_path / "cache")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests only read it."""
    return train(TINY, out=tmp_path_factory.mktemp("runs") / "run").run


def last_state(run: Path) -> tuple[dict[str, torch.Tensor], Any]:
    """Return tensors and JSON of the newest checkpoint, without the clock."""
    state = Checkpoints(run / "checkpoints").load().state
    return pack({name: value for name, value in state.items() if name != "seconds"})


def assert_same_state(a: Path, b: Path) -> None:
    (tensors, rest), (others, other_rest) = last_state(a), last_state(b)
    assert tensors.keys() == others.keys()
    for name, value in tensors.items():
        assert torch.equal(value, others[name]), name
    assert rest == other_rest


def make(**options: Any) -> VAETask:
    return build_task(dataclasses.replace(TINY, **options), Accelerator(cpu=True))


def test_a_run_folder_is_complete(finished: Path) -> None:
    names = {"config.json", "metrics.csv", "checkpoints", "model", "examples.txt", "curves.png",
             "evaluation.json"}  # fmt: skip
    assert {path.name for path in finished.iterdir()} == names
    assert load_config(OptimusConfig, finished / "config.json", trainer="optimus") == TINY
    rows = read_metrics(finished / "metrics.csv")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for name in ("loss/total", "loss/nll", "loss/kl", "schedule/beta", "learning rate/lr"):
        assert all(name in row for row in rows)
    record = json.loads((finished / "evaluation.json").read_text())
    assert record["kl"] == pytest.approx(rows[-1]["held out/KL"], rel=1e-5)
    assert record["analogies"]["accuracy"] == rows[-1]["analogy/accuracy"]
    assert (record["sentences"], record["draws"], record["step"], record["latent_size"]) == (6, 2, 4, 4)
    examples = (finished / "examples.txt").read_text()
    assert examples.startswith("10 interpolations, 5 steps each:")
    assert examples.count("(right)") + examples.count("(wrong)") == 10


def test_the_model_of_a_run_is_that_of_its_last_checkpoint(finished: Path) -> None:
    """``model/`` (also found from the run folder) and the checkpoint are the same networks."""
    texts = ["a girl runs .", "two sad dogs played ."]
    expected = load_model(finished, checkpoint=4).encode(texts).mean
    assert torch.equal(load_model(finished).encode(texts).mean, expected)
    assert torch.equal(SentenceVAE.from_pretrained(finished).encode(texts).mean, expected)
    assert not torch.equal(load_model(finished, checkpoint=3).encode(texts).mean, expected)


def test_measuring_again_gives_the_same(finished: Path) -> None:
    def record() -> dict[str, Any]:  # the clock of the checkpoint stopped before that of the run
        values = json.loads((finished / "evaluation.json").read_text())
        return {name: value for name, value in values.items() if name != "training_seconds"}

    before = record()
    result = evaluate_run(VAE_TRAINER, finished)
    assert record() == before
    assert result.figures.language.sentences == 6
    fewer = evaluate_run(VAE_TRAINER, finished, eval_sentences=3, eval_analogies=0)
    assert (fewer.figures.language.sentences, fewer.figures.analogies) == (3, None)
    evaluate_run(VAE_TRAINER, finished)


@pytest.mark.parametrize("stop", [1, 2])
def test_resume_is_bit_exact(tmp_path: Path, finished: Path, stop: int) -> None:
    """As many steps with a stop between them: weights, optimizer, order, random state, figures."""
    stopped = train(TINY, out=tmp_path / "run", stop_after=stop)
    assert (stopped.step, stopped.evaluation) == (stop, None)
    assert (tmp_path / "run" / "model").is_dir()
    torch.manual_seed(99)
    resumed = train(resume=tmp_path / "run")
    assert resumed.step == 4
    assert_same_state(finished, resumed.run)
    tables = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(run / "metrics.csv")]
        for run in (finished, resumed.run)
    ]
    assert tables[0] == tables[1]
    assert (resumed.run / "examples.txt").read_text() == (finished / "examples.txt").read_text()


def test_looking_more_often_changes_nothing(tmp_path: Path, finished: Path) -> None:
    often = dataclasses.replace(TINY, evaluate_every=1, checkpoint_every=1)
    assert_same_state(train(often, out=tmp_path / "often").run, finished)


def test_changed_options_are_shown_and_refused(tmp_path: Path) -> None:
    run = train(TINY, out=tmp_path / "run", stop_after=1).run
    with pytest.raises(ConfigError) as caught:
        train(dataclasses.replace(TINY, free_bits=0.1, steps=8, log_every=2), resume=run)
    assert "free_bits: 0.5 -> 0.1" in str(caught.value)
    assert "steps: 4 -> 8" in str(caught.value)  # beta and learning rate depend on it
    assert "log_every: 1" not in str(caught.value)


def test_a_run_does_not_go_on_with_other_sentences(tmp_path: Path) -> None:
    data = tmp_path / "a.txt"
    data.write_text("\n".join(f"the number {i} comes here" for i in range(60)))
    config = dataclasses.replace(TINY, data=str(data))
    run = train(config, out=tmp_path / "run", stop_after=1).run
    data.write_text("\n".join(f"the number {i} came here" for i in range(60)))
    with pytest.raises(CheckpointError, match="are not those the run was started with"):
        train(resume=run)


@pytest.mark.parametrize("weighted", [False, True])
def test_accumulation_is_one_batch(weighted: bool) -> None:
    """4 forwards of 8 sentences make the update of 1 forward of 32."""
    common = {"dropout": 0.0, "autoencoder_warmup": 0.0, "length_weighted": weighted, "free_bits": 0.01}
    parts = make(**common, batch_size=8, accumulate=4)
    whole = make(**common, batch_size=32, accumulate=1)
    for task in (parts, whole):
        torch.manual_seed(1)  # the noise of 4 x (8, 4) is that of (32, 4)
        values = task.step(3)
        assert values["loss/kl"] > 0
    for (name, a), b in zip(parts.vae.named_parameters(), whole.vae.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6, msg=name)
    start = make(**common, batch_size=32)
    assert not torch.equal(start.vae.linear.weight, whole.vae.linear.weight)


def test_warm_up_has_neither_noise_nor_kl() -> None:
    task = make(dropout=0.0, autoencoder_warmup=0.5)
    values = []
    for noise in (1, 2):
        twin = make(dropout=0.0, autoencoder_warmup=0.5)
        torch.manual_seed(noise)
        values.append(twin.step(0))
    assert values[0]["loss/total"] == values[1]["loss/total"] == values[0]["loss/nll"]
    task.step(0)
    assert task.gauges()["schedule/beta"] == 0


def test_bf16_trains() -> None:
    task = make(precision="bf16")
    first = float(task.step(0)["loss/total"])
    assert task.is_finite()
    assert 0 < first < 1000
    assert all(weight.dtype == torch.float32 for weight in task.vae.parameters())


def test_pretrained_networks_come_with_their_tokenizers(tmp_path: Path) -> None:
    tokenizers = train_tokenizers(load_corpus("grammar").train[:200], kind="word")
    networks = small_networks(tokenizers, width=16, layers=1, heads=2, positions=33)
    for name, network, tokenizer in zip(("bert", "gpt"), networks, tokenizers, strict=True):
        network.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    names = {"encoder": str(tmp_path / "bert"), "decoder": str(tmp_path / "gpt")}
    task = make(**names, pooling="pooler")
    embeddings = task.vae.encoder.get_input_embeddings().weight
    assert torch.equal(embeddings, networks[0].get_input_embeddings().weight)
    assert task.step(0)["loss/nll"] > 0
    with pytest.raises(ConfigError, match="too long"):  # of 34 positions the memory takes the first
        make(**names, max_length=34)


def test_divergence_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = VAETask.step

    def broken(self: VAETask, index: int) -> dict[str, torch.Tensor]:
        if index == 3:
            with torch.no_grad():
                self.vae.linear.weight.fill_(torch.nan)
        return step(self, index)

    monkeypatch.setattr(VAETask, "step", broken)
    with pytest.raises(DivergedError, match="checkpoint of step 3"):
        train(TINY, out=tmp_path / "run")


def test_learning_rate_rises_and_falls() -> None:
    config = dataclasses.replace(TINY, steps=100, lr_warmup=10, lr=0.01)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates.index(max(rates)) == 9
    assert rates[0] == pytest.approx(0.001, rel=0.01)
    assert rates[-1] == pytest.approx(0.001, rel=0.01)
    assert sorted(rates[9:], reverse=True) == rates[9:]


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("steps", [2, 30, 150, 3000])
def test_a_short_run_of_a_preset_reaches_its_learning_rate(name: str, steps: int) -> None:
    config = dataclasses.replace(PRESETS[name], steps=steps)
    assert max(learning_rate(config, step) for step in range(steps)) > 0.9 * config.lr


def test_warmups_of_the_presets_are_those_of_their_length() -> None:
    assert [config.warmup_steps for config in PRESETS.values()] == [100, 500]


def test_a_warmup_as_long_as_the_run_is_refused() -> None:
    assert dataclasses.replace(TINY, steps=150, lr_warmup=149).warmup_steps == 149
    with pytest.raises(ConfigError, match=r"lr_warmup is 500: .* 150 steps. Take a share"):
        dataclasses.replace(TINY, steps=150, lr_warmup=500)


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    data = tmp_path / "a.txt"
    lines = ["a first one .", "word " * 10_000, "", *(f"sentence {i} ." for i in range(40))]
    data.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n")
    task = make(data=str(data), eval_sentences=2)
    assert "skipped 1 empty, 1 not UTF-8, 1 longer than 32 tokens" in task.summary()
    assert f"{len(task.data):,} sentences" in task.summary()
    with pytest.raises(ConfigError, match="too few sentences"):
        make(data=str(data), batch_size=64)


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    said = dry_run(VAE_TRAINER, TINY, out=tmp_path / "run")
    assert "Nothing was written" in said
    assert not (tmp_path / "run").exists()


def test_seeds_differ() -> None:
    one, other = make(seed=0), make(seed=1)
    assert not torch.equal(one.vae.linear.weight, other.vae.linear.weight)
    assert not torch.equal(one.order.next(), other.order.next())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps is 0; expected at least 1"),
        ({"lr": 2.0}, "expected 0 < lr < 1"),
        ({"width": 10, "heads": 4}, "not a multiple of heads"),
        ({"max_length": 3}, "expected at least 4"),
        ({"free_bits": float("nan")}, "free_bits is nan"),
        ({"encoder": "bert-base-cased"}, "both 'small' or both"),
        ({"ratio_zero": 0.9, "ratio_increase": 0.3}, "their sum must be at most 1"),
        ({"autoencoder_warmup": 1.0}, "autoencoder_steps"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make(**options)


def test_presets() -> None:
    assert preset("grammar") == OptimusConfig()
    assert all(config.preset == name for name, config in PRESETS.items())
    with pytest.raises(ConfigError, match="did you mean 'captions'"):
        preset("caption")


def test_a_preset_without_data_of_its_own_asks_for_them() -> None:
    with pytest.raises(ConfigError, match="'captions' needs sentences: give --data FILE"):
        train(preset("captions"))


def test_captions_from_files(shared_data: Path, tmp_path: Path) -> None:
    files = [str(shared_data / "captions" / name) for name in ("train.txt", "valid.txt")]
    assert len(load_corpus(*files).train) == 145_000
    config = dataclasses.replace(
        preset("captions"), data=files[0], valid=files[1], limit=300, steps=2, layers=1, width=16, heads=2,
        vocab_size=400, batch_size=4, eval_sentences=4, iw_samples=2, device="cpu", evaluate_every=0,
        checkpoint_every=0, n_cycle=1, max_length=96,
    )  # fmt: skip
    result = train(config, out=tmp_path / "run")
    assert result.evaluation.figures.analogies is None
    assert (result.run / "examples.txt").read_text().count(" -> ") == 20
