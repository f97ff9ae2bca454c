"""``evaluate RUN --valid FILE``: a run measured on another file, and what was trained on told."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from fq_toolkit.cli import main
from tests.optimus.tasks.small_runs import TASKS, TINY, train

FIGURES = {"vae": "negative_elbo", "label-conditional": "bleu", "dialog": "bleu_f1"}


@pytest.fixture(scope="module", params=TASKS)
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(task: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``train``, ``valid`` and a ``run`` that was trained and measured on them."""
    place = tmp_path_factory.mktemp(task)
    train(place, task)
    return place


def ending(task: str) -> str:
    return TASKS[task][0]


def files_of(run: Path) -> set[str]:
    return {path.name for path in run.glob("evaluation*.json")}


def measured(run: Path, before: set[str]) -> tuple[str, dict[str, Any]]:
    """The evaluation file that has appeared, and its content."""
    (name,) = files_of(run) - before
    return name, json.loads((run / name).read_text())


def test_the_runs_own_validation_file_gives_the_runs_own_figures(
    task: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = folder / "run"
    own, before = (run / "evaluation.json").read_bytes(), files_of(run)
    again = tmp_path / f"again{ending(task)}"
    again.write_bytes((folder / f"valid{ending(task)}").read_bytes())
    assert main(["evaluate", str(run), "--valid", str(again)]) == 0
    name, record = measured(run, before)
    assert (run / "evaluation.json").read_bytes() == own
    expected = json.loads(own)
    digest = expected["measured_on"]["valid"]["hash"]
    assert name == f"evaluation-again-{digest}.json"
    assert record["measured_on"] == {"valid": {"file": str(again), "hash": digest, "items": 12}}
    assert (record["step"], record["trained_on"]) == (2, 0)
    for key in set(expected) - {"measured_on", "training_seconds", "analogies"}:
        assert record[key] == expected[key], key
    said = capsys.readouterr()
    (line,) = [line for line in said.out.splitlines() if line.startswith("measured on")]
    for part in (str(again), "12 items", digest, "step 2", name):
        assert part in line
    assert "trained on" not in said.err


def test_another_file_has_other_figures_and_a_name_of_its_own(
    task: str, folder: Path, tmp_path: Path
) -> None:
    run, other = folder / "run", tmp_path / f"other{ending(task)}"
    before = files_of(run)
    rows = (folder / f"valid{ending(task)}").read_text().splitlines()
    other.write_text("\n".join(row.replace("hears", "likes") for row in rows[:9]))
    assert main(["evaluate", str(run), "--valid", str(other)]) == 0
    name, record = measured(run, before)
    assert name == f"evaluation-other-{record['measured_on']['valid']['hash']}.json"
    assert record["measured_on"]["valid"]["items"] == 9
    other.write_text("\n".join(rows[:8]))  # another content is another file
    assert main(["evaluate", str(run), "--valid", str(other)]) == 0
    assert len(files_of(run) - before) == 2


def test_rows_that_were_trained_on_are_counted_and_told(
    task: str, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, leaky = folder / "run", tmp_path / f"leaky{ending(task)}"
    before = files_of(run)
    seen, new = ((folder / f"{part}{ending(task)}").read_text().splitlines() for part in ("train", "valid"))
    leaky.write_text("\n".join([*seen[4:7], *new[:5]]))
    assert main(["evaluate", str(run), "--valid", str(leaky)]) == 0
    _, record = measured(run, before)
    assert record["trained_on"] == 3
    assert "3 of the 8 " in caplog.text
    assert f"{leaky} were trained on" in caplog.text


def test_files_without_anything_to_measure_with_are_refused(
    task: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = folder / "run"
    before = files_of(run)
    long = " ".join(["cat"] * 40)
    row = TASKS[task][1]
    contents = {"empty": "\n\n", "long": f"{row.format(label='good', text=long, number=1)}\n" * 3}
    for name, content in contents.items():
        file = tmp_path / f"{name}{ending(task)}"
        file.write_text(content)
        assert main(["evaluate", str(run), "--valid", str(file)]) == 2, name
        assert str(file) in capsys.readouterr().err
    assert main(["evaluate", str(run), "--valid", str(tmp_path / f"absent{ending(task)}")]) == 2
    assert main(["evaluate", str(run), "--valid", str(tmp_path / "file.odd")]) == 2
    assert "file.odd" in capsys.readouterr().err
    assert files_of(run) == before


def test_lines_that_cannot_be_used_are_left_out_and_told(
    task: str, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, odd = folder / "run", tmp_path / f"odd{ending(task)}"
    before = files_of(run)
    rows = (folder / f"valid{ending(task)}").read_bytes().splitlines()
    odd.write_bytes(b"\n".join([*rows[:8], b"", b"\xff\xfe"]))
    assert main(["evaluate", str(run), "--valid", str(odd)]) == 0
    assert measured(run, before)[1]["measured_on"]["valid"]["items"] == 8
    assert f"{odd}: skipped 1 empty, 1 not UTF-8" in caplog.text


def test_a_run_on_the_grammar_is_measured_on_a_file_without_analogies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, file = tmp_path / "run", tmp_path / "some file.v1.txt.gz"
    options = ["--limit", "80", "--eval-analogies", "2", *TINY, *TASKS["vae"][2]]
    assert main(["train", "optimus", "--out", str(run), *options]) == 0
    file.write_bytes(gzip.compress(b"a girl runs .\nthe moon sings .\ntwo dogs jump .\n"))
    before = files_of(run)
    assert main(["evaluate", str(run), "--valid", str(file)]) == 0
    name, record = measured(run, before)
    assert name.startswith("evaluation-some-file.v1-")
    assert record["analogies"] is None
    assert record["unknown"] > 0
    capsys.readouterr()
    assert main(["evaluate", str(run), "--valid", str(file), "--analogies", "3"]) == 2
    assert "--analogies" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--valid", "grammar"]) == 2


def test_labels_that_the_run_does_not_know_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path, "label-conditional")
    other = tmp_path / "other.tsv"
    other.write_text("odd\tthe cat sees a .\ngood\tthe cat sees b .\n")
    assert main(["evaluate", str(run), "--valid", str(other)]) == 2
    assert "odd; known: bad, good" in capsys.readouterr().err
    other.write_text('{"label": "good", "sentence": "the cow sees b ."}\n' * 3)
    other = other.rename(tmp_path / "other.jsonl")
    assert main(["evaluate", str(run), "--valid", str(other)]) == 2
    assert main(["evaluate", str(run), "--valid", str(other), "--text-key", "sentence"]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), "--text-key", "sentence"]) == 2
    assert "--text-key" in capsys.readouterr().err
