"""A sentence VAE is measured on the sentences it was measured on, or not at all."""

import json
from pathlib import Path

import pytest

from fq_toolkit.cli import main
from tests.optimus.tasks.small_runs import TASKS, TINY, VAE, write
from tests.training.storage.older import as_older_version


@pytest.mark.parametrize("task", TASKS)
def test_other_rows_to_measure_with_are_refused(
    tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data, valid = write(tmp_path, task)
    run, before = str(tmp_path / "run"), valid.read_text()
    start = ["train", "optimus", "--task", task]
    files = ["--data", str(data), "--valid", str(valid)]
    assert main([*start, *files, "--out", run, *TINY, *TASKS[task][2]]) == 0
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())["measured_on"]
    assert found == {"valid": {"file": str(valid), "hash": found["valid"]["hash"], "items": 12}}
    line = f"measured on {valid} (12 items, hash {found['valid']['hash']})"
    assert line in capsys.readouterr().out
    again = [[*start, "--resume", run], ["evaluate", run]]
    for changed in (before.replace("cat", "cow"), "\n".join(before.splitlines()[:-1])):
        valid.write_text(changed)
        for words in again:
            assert main(words) == 1, words
            said = capsys.readouterr().err
            assert f"{valid}, or what belongs to its items, is not what the run was measured on" in said
            assert f"12 items with hash {found['valid']['hash']} at step 2" in said
    valid.write_text(before)
    for words in again:
        assert main(words) == 0
        assert line in capsys.readouterr().out


def test_a_held_out_sentence_of_the_training_file_is_one_to_measure_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, _ = write(tmp_path, "vae")
    run = str(tmp_path / "run")
    assert main(["train", "optimus", "--data", str(data), "--out", run, *TINY, *VAE]) == 0
    data.write_text(data.read_text().replace("dog sees a .", "cow sees a .", 1))  # the first of every twenty
    for words in (["train", "optimus", "--resume", run], ["evaluate", run]):
        assert main(words) == 1
        assert f"held out of {data}, or what belongs" in capsys.readouterr().err


def test_checkpoints_that_do_not_say_it_are_read_and_that_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, valid = write(tmp_path, "vae")
    run = tmp_path / "run"
    files = ["--data", str(data), "--valid", str(valid)]
    assert main(["train", "optimus", *files, "--out", str(run), *TINY, *VAE]) == 0
    for path in (run / "checkpoints").glob("step_*.json"):
        as_older_version(path)
    for words in (["train", "optimus", "--resume", str(run)], ["evaluate", str(run)]):
        caplog.clear()
        assert main(words) == 0
        assert f"(now {valid}) cannot be checked" in caplog.text
