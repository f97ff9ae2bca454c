"""What a careless user gives: every one of these is an error in a sentence, or a counted skip."""

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from fq_toolkit.cli import main
from fq_toolkit.optimus.data.corpus import load_corpus, read_sentences
from fq_toolkit.optimus.data.dialogs import load_dialogs
from fq_toolkit.optimus.data.labels import load_labelled
from fq_toolkit.optimus.data.text_files import HALF_A_PAIR
from fq_toolkit.optimus.data.tokenizer_training import train_tokenizers
from fq_toolkit.optimus.model.hub import load_pretrained
from fq_toolkit.optimus.model.sentence_vae import SentenceVAE
from fq_toolkit.optimus.tasks.classification.latent_plot import embed_in_plane
from fq_toolkit.optimus.tasks.networks import build_vae
from fq_toolkit.optimus.tasks.vae.config import OptimusConfig
from fq_toolkit.optimus.tasks.vae.training import VAETask
from fq_toolkit.training.errors import ConfigError, RunError
from fq_toolkit.training.session import make_accelerator
from tests.optimus.model.test_hub import bert_like, gpt2_like
from tests.optimus.toys import TEXTS, decoder_of, toy_tokenizers, toy_vae

SMALL = """--steps 2 --layers 1 --width 16 --heads 2 --latent-size 4 --batch-size 8 --checkpoint-every 0
--device cpu""".split()
VAE = [*SMALL, "--limit", "64", "--eval-sentences", "4", "--iw-samples", "1", "--eval-analogies", "6"]
HALF = '"half \\ud83d of an emoji"'


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    made = {task: folder / task for task in ("vae", "label-conditional", "dialog")}
    for task, run in made.items():
        rest = VAE if task == "vae" else [*SMALL, "--limit", "64", "--eval-rows", "4"]
        assert main(["train", "optimus", "--task", task, "--out", str(run), *rest]) == 0
    return made


def sentences(count: int, words: int) -> list[str]:
    """Different sentences of as many words each."""
    return [" ".join([f"w{number % 7}", f"v{number}", *["x"] * (words - 2)]) for number in range(count)]


def test_half_of_a_surrogate_pair_is_counted_by_all_readers(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    rows = [f'{{"text": "{text}", "label": {i % 2}}}' for i, text in enumerate(sentences(40, 3))]
    file.write_text("\n".join([*rows, f'{{"text": {HALF}, "label": 1}}']))
    found = read_sentences(str(file))
    assert (len(found.texts), found.skipped) == (40, {HALF_A_PAIR: 1})
    train_tokenizers(found.texts)
    assert load_labelled(str(file)).skipped == {HALF_A_PAIR: 1}
    file.write_text("\n".join([*rows, f'{{"text": "a", "label": {HALF}}}']))
    assert load_labelled(str(file)).skipped == {HALF_A_PAIR: 1}
    pairs = [f'{{"context": "{text}", "response": "so"}}' for text in sentences(40, 3)]
    pairs += [f'{{"context": {HALF}, "response": "so"}}', '{"context": "a", "response": []}']
    file.write_text("\n".join(pairs))
    assert load_dialogs(str(file)).skipped == {HALF_A_PAIR: 1, "without 'context' and 'response'": 1}


def test_half_of_a_surrogate_pair_in_a_sentence_is_refused_by_number() -> None:
    with pytest.raises(ValueError, match="sentence 1 holds half of a surrogate pair"):
        toy_vae().encode([TEXTS[0], json.loads(HALF)])


@pytest.mark.parametrize("command", ["play", "reconstruct"])
def test_bytes_that_are_no_text_do_not_end_a_pipe(
    runs: dict[str, Path], command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = io.BytesIO(b"a dog runs .\n\xff\xfe\ntwo cats play .\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(typed, encoding="utf-8"))
    assert main([command, str(runs["vae"])]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize(
    ("task", "words", "said"),
    [
        ("vae", ["plot-latents", "--seed", "-1"], "seed is -1; expected 0 to 4294967295"),
        ("vae", ["plot-latents", "--seed", "4294967296"], "seed is 4294967296"),
        ("vae", ["classify", "--seed", "-1"], "seed is -1"),
        ("vae", ["sample", "--seed", "99999999999999999999"], "seed is 99999999999999999999"),
        ("vae", ["play", "--seed", "-1"], "seed is -1"),
        ("vae", ["reconstruct", json.loads(HALF)], "sentence 0 holds half of a surrogate pair"),
        ("dialog", ["sample", json.loads(HALF)], "sentence 0 holds half of a surrogate pair"),
        ("dialog", ["sample", "hello .", "--max-new-tokens", "0"], "max_new_tokens must be at least 1"),
        ("dialog", ["sample", "hello .", "--seed", "-1"], "seed is -1"),
        ("label-conditional", ["sample", "--max-new-tokens", "0"], "max_new_tokens must be at least 1"),
        ("label-conditional", ["sample", "--seed", "-1"], "seed is -1"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_told(
    runs: dict[str, Path], task: str, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([words[0], str(runs[task]), *words[1:]]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("change", [{"seed": 2**63}, {"seed": -1}, {"vocab_size": -1}, {"vocab_size": 2**64}])
def test_numbers_that_other_libraries_do_not_take_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=rf"{next(iter(change))} is -?\d+; expected 0 to"):
        OptimusConfig(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, 5])
def test_a_vocabulary_without_room_for_a_word_is_refused(size: int) -> None:
    with pytest.raises(ConfigError, match=f"vocab_size is {size}"):
        train_tokenizers(TEXTS, size, kind="word")


@pytest.mark.parametrize("kept", [[sentences(1, 4)[0]], sentences(30, 80)])
def test_sentences_that_cannot_be_measured_with_are_refused_before_training(
    tmp_path: Path, kept: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, texts in (("train", sentences(60, 4)), ("valid", kept)):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts))
    files = ["--data", str(tmp_path / "train.txt"), "--valid", str(tmp_path / "valid.txt")]
    assert main(["train", "optimus", "--out", str(tmp_path / "run"), *VAE, *files]) == 2
    assert "nothing can be measured: at least two sentences of up to 32 tokens" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("spare", [0, 1, 2])
def test_a_run_ends_with_examples_however_close_to_the_limit_its_sentences_are(
    tmp_path: Path, spare: int
) -> None:
    words = 6
    too_long = sentences(600, 40)  # a pool of the first sentences would have none that fit
    (tmp_path / "train.txt").write_text("\n".join(sentences(60, words)))
    (tmp_path / "valid.txt").write_text("\n".join(too_long + sentences(40, words)))
    out = tmp_path / "run"
    options = ["--max-length", str(words + 2 + spare), "--eval-sentences", "1000", "--tokenizer", "word"]
    options += ["--data", str(tmp_path / "train.txt"), "--valid", str(tmp_path / "valid.txt")]
    assert main(["train", "optimus", "--out", str(out), *VAE, *options]) == 0
    assert "10 interpolations" in (out / "examples.txt").read_text()


@pytest.mark.parametrize("limit", [0, 1])
def test_one_label_alone_is_refused_when_the_sentences_are_read(tmp_path: Path, limit: int) -> None:
    rows = ["rare\tw0 v0", *(f"often\t{text}" for text in sentences(60, 3))]
    (tmp_path / "a.tsv").write_text("\n".join(rows))  # the first is kept to measure with
    with pytest.raises(
        ConfigError, match=r"of the labels often, rare of .* the sentences to learn from have"
    ):
        load_labelled(str(tmp_path / "a.tsv"), limit=limit)


def test_latents_of_one_dimension_have_a_picture() -> None:
    assert embed_in_plane(np.random.default_rng(0).normal(size=(12, 1)).astype(np.float32)).shape == (12, 2)


@pytest.mark.parametrize(
    "file",
    [
        "vae.json", "posterior.safetensors", "encoder/model.safetensors", "decoder/model.safetensors",
        "encoder/config.json", "decoder/config.json", "tokenizers/encoder/tokenizer.json",
        "tokenizers/decoder/tokenizer.json",
    ],
)  # fmt: skip
@pytest.mark.parametrize("how", ["gone", "cut"])
def test_a_damaged_model_is_told_and_its_checkpoint_still_read(
    runs: dict[str, Path], tmp_path: Path, file: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["vae"], run)
    path = run / "model" / file
    content = path.read_bytes()
    path.unlink() if how == "gone" else path.write_bytes(content[: len(content) // 2])
    assert main(["sample", str(run), "--count", "1"]) == 1
    assert "--checkpoint last reads the newest checkpoint instead" in capsys.readouterr().err
    assert main(["sample", str(run), "--count", "1", "--checkpoint", "2"]) == 0


@pytest.mark.parametrize("network", ["encoder", "decoder"])
def test_weights_that_are_not_in_the_file_are_not_drawn_at_random(tmp_path: Path, network: str) -> None:
    from safetensors.torch import load_file, save_file

    toy_vae().save_pretrained(tmp_path / "m")
    file = tmp_path / "m" / network / "model.safetensors"
    weights = load_file(file)
    lost = next(name for name in weights if name.endswith("weight") and "latent" not in name)
    save_file({name: value for name, value in weights.items() if name != lost}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"lack .*which would be random"):
        SentenceVAE.from_pretrained(tmp_path / "m")


def test_runs_of_different_precision_are_compared(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "half"
    shutil.copytree(runs["vae"], other)
    config = (other / "config.json").read_text()
    assert config.count('"precision": "no"') == 1
    (other / "config.json").write_text(config.replace('"precision": "no"', '"precision": "bf16"'))
    words = "--per-class 1 --seeds 1 --finetune-steps 0 --test-sentences 6 --against".split()
    assert main(["classify", str(runs["vae"]), *words, str(other)]) == 0
    assert "pooled, half" in capsys.readouterr().out
    assert main(["evaluate", str(other), "--analogies", "0"]) == 0


def test_a_file_that_cannot_grow_is_told_and_leaves_the_old_model(tmp_path: Path) -> None:
    """What a full disk is to safetensors is no OSError."""
    resource = pytest.importorskip("resource")
    toy_vae().save_pretrained(tmp_path / "m")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(RunError, match=r"cannot write .*Nothing half-written was left"):
            toy_vae(seed=1).save_pretrained(tmp_path / "m")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    assert SentenceVAE.from_pretrained(tmp_path / "m").reconstruct(TEXTS) == toy_vae().reconstruct(TEXTS)


def pretrained(tmp_path: Path) -> tuple[Path, Path]:
    return bert_like(tmp_path / "bert"), gpt2_like(tmp_path / "gpt2")


@pytest.mark.parametrize("role", [0, 1])
def test_a_network_without_a_tokenizer_is_refused(tmp_path: Path, role: int) -> None:
    """Transformers makes one up, to which every word is unknown."""
    folders = pretrained(tmp_path)
    for file in folders[role].iterdir():
        if file.name not in ("config.json", "generation_config.json", "model.safetensors"):
            file.unlink()
    with pytest.raises(RunError):
        load_pretrained(str(folders[0]), str(folders[1]))


def test_folders_that_hold_something_else_are_named(tmp_path: Path) -> None:
    bert, gpt2 = pretrained(tmp_path)
    (tmp_path / "t5").mkdir()
    transformers.T5Config().save_pretrained(tmp_path / "t5")
    toy_tokenizers().decoder.save_pretrained(tmp_path / "t5")
    (tmp_path / "empty").mkdir()
    for encoder, decoder in ((bert, tmp_path / "t5"), (bert, tmp_path / "empty"), (tmp_path / "empty", gpt2)):
        with pytest.raises(RunError, match="cannot load"):
            load_pretrained(str(encoder), str(decoder))
    content = (bert / "model.safetensors").read_bytes()
    (bert / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(RunError, match=r"cannot load .*bert'"):
        load_pretrained(str(bert), str(gpt2))


def test_a_decoder_with_no_place_for_the_latent_is_told_as_an_option(tmp_path: Path) -> None:
    bert, _ = pretrained(tmp_path)
    decoder_of("bloom").save_pretrained(tmp_path / "bloom")
    toy_tokenizers().decoder.save_pretrained(tmp_path / "bloom")
    config = OptimusConfig(encoder=str(bert), decoder=str(tmp_path / "bloom"), max_length=16, latent_size=4)
    with pytest.raises(ConfigError, match="memory cannot work in BloomForCausalLM"):
        build_vae(config, TEXTS)


def test_weights_are_trained_in_float32_whatever_the_checkpoint_has(tmp_path: Path) -> None:
    """Updates of a small learning rate are less than half of the last digit of bfloat16."""
    bert, gpt2 = pretrained(tmp_path)
    for folder, kind in ((bert, transformers.BertModel), (gpt2, transformers.GPT2LMHeadModel)):
        kind.from_pretrained(folder).bfloat16().save_pretrained(folder)
    (tmp_path / "a.txt").write_text("\n".join(["dogs"] * 60))
    config = OptimusConfig(
        data=str(tmp_path / "a.txt"), encoder=str(bert), decoder=str(gpt2), max_length=16, latent_size=4,
        batch_size=8, lr=1e-6, lr_warmup=0, eval_sentences=2, device="cpu", weight_decay=0.0,
    )  # fmt: skip
    task = VAETask(config, load_corpus(config.data), make_accelerator(config))
    weight = task.vae.encoder.embeddings.LayerNorm.weight  # 1 everywhere
    before = weight.detach().clone()
    task.step(config.steps - 1)
    assert {w.dtype for w in task.vae.parameters()} == {torch.float32}
    assert float((weight.detach() - before).abs().max()) > 0


@pytest.mark.parametrize("task", ["vae", "label-conditional", "dialog"])
def test_a_checkpoint_is_not_read_with_the_words_of_other_data(
    tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tokenizers are trained on the data: other data of as many tokens would give each row another word."""
    endings = {"vae": "txt", "label-conditional": "tsv", "dialog": "tsv"}
    file, run = tmp_path / f"a.{endings[task]}", tmp_path / "run"
    rows = [
        f"{'ab'[i % 2]}{i if task == 'dialog' else ''}\t{text}" for i, text in enumerate(sentences(60, 4))
    ]
    lines = rows if task != "vae" else sentences(60, 4)
    file.write_text("\n".join(lines))
    rest = ["--eval-sentences", "2", "--iw-samples", "1"] if task == "vae" else ["--eval-rows", "2"]
    words = ["train", "optimus", "--task", task, "--data", str(file), "--out", str(run), *SMALL, *rest]
    assert main(words) == 0
    assert main(["evaluate", str(run)]) == 0
    file.write_text("\n".join(line.replace("v", "u") for line in lines[::-1]))
    assert main(["evaluate", str(run)]) == 1
    assert "are not those the run was started with" in capsys.readouterr().err
    shutil.rmtree(run / "model")  # has the tokenizers of the run; without it they would come from the data
    words = ["a"] if task == "dialog" else []
    assert main(["sample", str(run), "--checkpoint", "2", *words]) == 1
