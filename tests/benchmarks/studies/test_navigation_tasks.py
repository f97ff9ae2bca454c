"""The study of the tasks: a quick run writes nothing, finished runs are not repeated, tables count."""

from pathlib import Path

import pytest
import torch

from benchmarks.studies import navigation_tasks as study
from benchmarks.studies.results import Row, append, read


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path: Path):
    threads = torch.get_num_threads()
    monkeypatch.setattr(study, "results_file", lambda: tmp_path / "study.csv")
    yield
    torch.set_num_threads(threads)


def test_a_quick_run_writes_nothing(capsys, tmp_path):
    assert study.main(["--quick", "--seeds", "1", "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    assert all(f"seed 0 {arm}: " in printed for arm in study.ARMS)
    assert "SR without help" in printed
    assert not list(tmp_path.iterdir())


def test_finished_runs_are_not_repeated(monkeypatch, capsys, tmp_path):
    done = []

    def run_once(arm, seed, folder, *, quick):
        done.append((arm, seed))
        return {"val_unseen SR": 0.5 + 0.1 * seed, study.LAST: 3.0}

    monkeypatch.setattr(study, "run_once", run_once)
    assert study.main(["--seeds", "1", "--arms", "speaker"]) == 0
    assert study.main(["--seeds", "2", "--arms", "speaker", "hanna, scratch"]) == 0
    assert done == [("speaker", 0), ("hanna, scratch", 0), ("speaker", 1), ("hanna, scratch", 1)]
    assert "| speaker | val_unseen SR | 0.55 | -0.0853 .. 1.19 | 2 |" in capsys.readouterr().out
    assert len(read(tmp_path / "study.csv")) == 8


def test_the_table_keeps_commits_apart(tmp_path):
    one = study.make_setting()
    other = one.__class__(**{**one.__dict__, "commit": "another", "dirty": True})
    append(tmp_path / "s.csv", [Row(s, "ndh, scratch", 0, "val_unseen GP", 1.5, "d") for s in (one, other)])
    text = study.report(read(tmp_path / "s.csv"))
    assert text.count("| ndh, scratch | val_unseen GP | 1.5 | one seed | 1 |") == 2
    assert "commit another (modified)" in text
    assert study.report([]) == "no run has ended yet\n"


def test_the_committed_rows_are_of_one_commit():
    (file,) = study.DIRECTORY.glob("study_navigation_tasks-*.csv")
    assert len({row.setting for row in read(file)}) == 1, "rows of an older commit are deleted"
