"""The commands: a quick run works, a red gate refuses and writes nothing, pictures and tables are made."""

import subprocess
import sys

import pytest
import torch

from benchmarks import gates
from benchmarks.__main__ import REFUSED, main
from benchmarks.results import read


@pytest.fixture(autouse=True)
def _same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


QUICK = ["run", "--quick", "--rounds", "1", "--threads", "1"]


@pytest.mark.parametrize("case", ["lookup", "commit"])
def test_a_quick_run_prints_and_writes_nothing(case, capsys, tmp_path):
    assert main([*QUICK, "--no-memory", "--case", case, "--results", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "FeatureQuantizer" in printed
    assert "floor" in printed
    assert list(tmp_path.iterdir()) == []


def test_a_red_gate_refuses_and_writes_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(gates.GATES, "commit", lambda *, device: ["commit: deliberately wrong"])
    assert main(["run", "--case", "commit", "--results", str(tmp_path)]) == REFUSED
    printed = capsys.readouterr().out
    assert "deliberately wrong" in printed
    assert "refused" in printed
    assert list(tmp_path.iterdir()) == []


def test_a_run_merges_rows_and_feeds_plot_and_table(capsys, tmp_path):
    words = ["run", "--case", "commit", "--shape", "StyleGAN2", "--rounds", "1", "--results", str(tmp_path)]
    assert main(words) == 0
    (path,) = tmp_path.glob("*.csv")
    rows = read(path)
    assert {row.contender for row in rows} == {"FeatureQuantizer", "plain torch"}
    assert all(row.median_ms > 0 and row.floor_ms > 0 and row.gate == "green" for row in rows)
    assert main(words) == 0
    assert len(read(path)) == len(rows)
    assert main(["plot", "--results", str(tmp_path)]) == 0
    assert (tmp_path / path.stem / "commit.png").stat().st_size > 10_000
    readme = tmp_path / "README.md"
    readme.write_text("<!-- bench:begin -->\n<!-- bench:end -->\n")
    command = ["table", "--page", str(readme), "--results", str(tmp_path)]
    assert [main([*command, "--check"]), main(command), main([*command, "--check"])] == [1, 0, 0]


def test_plot_without_results_says_what_to_do(capsys, tmp_path):
    assert main(["plot", "--results", str(tmp_path)]) == 1
    assert "run `python -m benchmarks run` first" in capsys.readouterr().err


def test_compare_refuses_an_unknown_commit(capsys):
    assert main(["compare", "no-such-commit", "--case", "commit", "--quick"]) == REFUSED
    assert "git cannot check out 'no-such-commit'" in capsys.readouterr().out.replace("\n", " ")


def test_help_names_the_commands():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--help"], capture_output=True, text=True, check=True
    )
    for command in ("run", "compare", "plot", "table"):
        assert command in done.stdout
