"""The command line of sentence VAEs, on a run that takes a second."""

import io
import json
import re
import sys
from pathlib import Path

import pytest
import torch

from fq_toolkit.cli import main
from fq_toolkit.optimus.model.sentence_vae import SentenceVAE
from fq_toolkit.optimus.tasks.vae.play import play
from fq_toolkit.optimus.tasks.vae.runs import load_model

TRAIN = """--limit 200 --steps 2 --layers 1 --width 16 --heads 2 --latent-size 4 --batch-size 8 --lr-warmup 1
--log-every 1 --checkpoint-every 1 --evaluate-every 0 --eval-sentences 6 --iw-samples 2 --eval-analogies 6
--device cpu""".split()
A, B, C = "a girl runs .", "two girls run .", "a dog jumps ."


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "optimus", "--task", "vae", "--out", str(folder), *TRAIN]) == 0
    return folder


@pytest.fixture(scope="module")
def vae(run: Path) -> SentenceVAE:
    return load_model(run)


def test_training_ends_with_examples_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert main(["train", "optimus", "--out", str(folder), *TRAIN]) == 0
    said = capsys.readouterr().out
    assert "10 interpolations, 5 steps each:" in said
    assert "10 analogies:" in said
    assert said.count(" -> ") == 20
    for part in (
        "perplexity",
        "-ELBO",
        "KL",
        "mutual information",
        "of 4 dimensions active",
        "from another's",
    ):
        assert part in said
    assert "analogies on held-out combinations:" in said
    assert f"run folder: {folder} (model/, examples.txt" in said


def test_evaluate(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--sentences", "4", "--iw-samples", "3", "--checkpoint", "1"]) == 0
    assert "step" not in capsys.readouterr().err
    record = json.loads((run / "evaluation.json").read_text())
    assert (record["sentences"], record["draws"], record["step"]) == (4, 3, 1)


def test_reconstruct(
    run: Path, vae: SentenceVAE, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    back = vae.reconstruct([A, C], max_new_tokens=40)
    expected = f"{A} -> {back[0]}\n{C} -> {back[1]}\n"
    assert main(["reconstruct", str(run), A, C]) == 0
    assert capsys.readouterr().out == expected
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{A}\n\n{C}\n"))
    assert main(["reconstruct", str(run)]) == 0
    assert capsys.readouterr().out == expected
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert main(["reconstruct", str(run)]) == 2
    assert "no sentence was given" in capsys.readouterr().err


def test_sample(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for options in ([], [], ["--seed", "1"], ["--temperature", "1"], ["--temperature", "1"]):
        assert main(["sample", str(run), "--count", "3", "--max-new-tokens", "5", *options]) == 0
        said.append(capsys.readouterr().out)
    assert all(text.count("\n") == 3 for text in said)
    assert said[0] == said[1]
    assert said[3] == said[4] != said[0]
    assert main(["sample", str(run), "--top-p", "0"]) == 2


def test_interpolate_and_analogy(run: Path, vae: SentenceVAE, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["interpolate", str(run), A, C, "--steps", "3", "--kind", "spherical"]) == 0
    path = vae.interpolate(A, C, 3, kind="spherical", max_new_tokens=40)
    assert capsys.readouterr().out.splitlines() == path
    assert main(["analogy", str(run), A, B, C, "--degree", "0.5"]) == 0
    assert capsys.readouterr().out.strip() == vae.analogy(A, B, C, 0.5, max_new_tokens=40)
    assert main(["interpolate", str(run), A, C, "--steps", "1"]) == 2
    assert "at least 2" in capsys.readouterr().err
    assert main(["analogy", str(run), A, " ", C]) == 2


def test_words_that_are_unknown_are_told(
    run: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["reconstruct", str(run), "a zebra runs .", A]) == 0
    assert "never seen: zebra" in caplog.text


def test_play_answers_a_pipe(vae: SentenceVAE) -> None:
    out = io.StringIO()
    lines = [
        A, "", f"/interpolate {A} | {C}", "/set steps 3", f"/interpolate {A} | {C}",
        f"/analogy {A} | {B} | {C}", "/sample 2", "/sample x", "/nonsense", "/interpolate a", "/set steps 1",
        "/set colour 1", "/set steps", "a zebra runs .", "/help", "/quit", "never read",
    ]  # fmt: skip
    play(vae, [f"{line}\n" for line in lines], out)
    said = out.getvalue().splitlines()
    short = {"max_new_tokens": 40}
    assert said[0].startswith(f"{vae.reconstruct([A], **short)[0]}   [KL ")
    assert said[1:9] == vae.interpolate(A, C, 8, **short)
    assert said[9] == "steps 3"
    assert said[10:13] == vae.interpolate(A, C, 3, **short)
    assert said[13] == vae.analogy(A, B, C, **short)
    assert len(said[14:16]) == 2
    refused = [line for line in said if line.startswith("? ")]
    assert [said.index(line) for line in refused] == list(range(16, 22))
    reasons = ("/sample N", "unknown command /nonsense", "expected /interpolate A | B", "at least 2")
    reasons += ("unknown setting", "expected /set NAME NUMBER")
    for line, part in zip(refused, reasons, strict=True):
        assert part in line
    assert said[22].endswith("unknown: zebra]")
    assert said[23].startswith("Type a sentence")


def test_play_on_the_command_line(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{A}\n/set degree 2"))
    assert main(["play", str(run)]) == 0
    said = capsys.readouterr().out
    assert said.endswith("degree 2\n")
    assert "> " not in said


def test_plot_and_resume(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "curves.png").unlink()
    assert main(["plot", str(run)]) == 0
    assert (run / "curves.png").stat().st_size > 0
    assert main(["train", "optimus", "--resume", str(run)]) == 0
    assert main(["train", "optimus", "--resume", str(run), "--lr", "0.5"]) == 2
    assert "lr: 0.002 -> 0.5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "optimus", "--task", "vea"], "did you mean 'vae'"),
        (["train", "optimus", "--preset", "gramar"], "did you mean 'grammar'"),
        (["train", "optimus", "--data", "absent.txt"], "No such file"),
        (["train", "optimus", "--data", "words.csv"], "expected 'grammar', a file ending in"),
        (["train", "optimus", "--encoder", "./no-bert", "--decoder", "./no-gpt"], "no-bert"),
        (["interpolate", "absent", A, C], "is not a run folder"),
    ],
)
def test_mistakes_are_told(
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) in (1, 2)
    assert said in capsys.readouterr().err


def test_a_resumed_run_knows_its_task(run: Path) -> None:
    from fq_toolkit.optimus.tasks.commands import split_task

    assert split_task(["--resume", str(run), "--steps", "3"]) == (
        "vae",
        ["--resume", str(run), "--steps", "3"],
    )
    assert split_task([f"--resume={run}", "--task=vae"]) == ("vae", [f"--resume={run}"])
    assert split_task([]) == ("vae", [])


def sentences_file(folder: Path) -> Path:
    path = folder / "my.txt"
    path.write_text("".join(f"das haus nummer {i} steht am fluss .\n" for i in range(120)))
    return path


@pytest.mark.parametrize(
    ("extra", "kind"),
    [([], "subwords"), (["--tokenizer", "word"], "words"), (["--vocab-size", "900"], "words")],
)
def test_other_sentences_get_a_tokenizer_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], kind: str
) -> None:
    data = ["--data", str(sentences_file(tmp_path)), *extra]
    assert main(["train", "optimus", *TRAIN, *data, "--dry-run"]) == 0
    assert re.search(rf"\d {kind} trained in place", capsys.readouterr().out)
    for task in ("label-conditional", "dialog"):
        assert main(["train", "optimus", "--task", task, *data, "--print-config"]) == 0
        assert json.loads(capsys.readouterr().out)["tokenizer"] == kind.rstrip("s")
    assert main(["train", "optimus", *TRAIN, "--dry-run"]) == 0
    assert "words trained in place" in capsys.readouterr().out


def test_training_goes_on_from_a_finished_model(
    run: Path, vae: SentenceVAE, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(sentences_file(tmp_path)), "--init", str(run)]
    out = tmp_path / "on"
    assert main(["train", "optimus", *TRAIN, *data, "--out", str(out), "--lr", "1e-9"]) == 0
    again = load_model(out)
    assert again.tokenizers.decoder.get_vocab() == vae.tokenizers.decoder.get_vocab()
    for name, value in vae.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=1e-4, atol=1e-6)
    assert main(["train", "optimus", "--resume", str(out), "--steps", "2"]) in (0, 2)
    capsys.readouterr()
    assert main(["train", "optimus", *TRAIN, *data, "--latent-size", "5", "--dry-run"]) == 2
    assert "has --latent-size 4, and 5 is asked for" in capsys.readouterr().err
    assert main(["train", "optimus", *TRAIN, "--init", str(tmp_path / "none"), "--dry-run"]) != 0


@pytest.mark.parametrize("task", ["label-conditional", "dialog"])
def test_the_sentence_vae_within_other_tasks_answers_too(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    options = """--limit 60 --steps 1 --layers 1 --width 16 --heads 2 --latent-size 4 --batch-size 8
    --lr-warmup 0
    --eval-rows 4 --device cpu""".split()
    assert main(["train", "optimus", "--task", task, "--out", str(folder), *options]) == 0
    capsys.readouterr()
    assert main(["reconstruct", str(folder), A]) == 0
    assert capsys.readouterr().out.startswith(f"{A} -> ")
    assert main(["interpolate", str(folder), A, B, "--steps", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert main(["analogy", str(folder), A, B, C]) == 0
    assert main(["reconstruct", str(folder), A, "--checkpoint", "best"]) == 0
    assert main(["evaluate", str(folder)]) == 0
    assert "step 1" in capsys.readouterr().out
