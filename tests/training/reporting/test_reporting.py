"""Metrics file, plots, progress, run folder, optional packages, signals."""

import io
import os
import signal
import sys
from pathlib import Path

import pytest

from fq_toolkit.training.errors import MissingExtraError, RunError, require
from fq_toolkit.training.interrupt import StopRequest
from fq_toolkit.training.reporting import progress
from fq_toolkit.training.reporting.metrics_log import MetricsLog, read_metrics
from fq_toolkit.training.reporting.plots import plot_curves
from fq_toolkit.training.storage.run_folder import RunFolder


def test_metrics_are_rewound_on_resume(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.csv", ["loss/d", "fid/x"])
    log.rewind(0)
    for step in (10, 20, 30):
        log.write(step, {"loss/d": step / 7})
    log.write(40, {"fid/x": 2.5})
    with open(log.path, "a") as file:
        file.write("50,1.2")  # cut short by a kill
    assert [row["step"] for row in read_metrics(log.path)] == [10, 20, 30, 40]
    log.rewind(20)
    log.write(30, {"loss/d": 0.25})
    assert log.path.read_text() == "step,loss/d,fid/x\n10,1.42857,\n20,2.85714,\n30,0.25,\n"


def test_metrics_without_a_column_are_refused(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.csv", ["loss/d"])
    with pytest.raises(ValueError, match=r"\['loss/g'\] have no column"):
        log.write(1, {"loss/g": 1.0})


def test_a_foreign_metrics_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    with pytest.raises(RunError, match="cannot read"):
        read_metrics(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(RunError, match="no column 'step'"):
        read_metrics(path)
    path.write_bytes(b"step\n\xff\n")
    with pytest.raises(RunError, match="it is damaged"):
        read_metrics(path)


def test_curves(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.csv", ["seconds", "loss/d", "loss/g", "fid/x"])
    log.rewind(0)
    with pytest.raises(RunError, match="no rows to draw"):
        plot_curves(log.path, tmp_path / "curves.png", title="t")
    for step in range(1, 30):
        log.write(step, {"seconds": step, "loss/d": 1 / step, "loss/g": step})
    log.write(30, {"fid/x": 1.0})
    plot_curves(log.path, tmp_path / "curves.png", title="t")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "matplotlib.pyplot" not in sys.modules or "pyplot" not in plot_curves.__code__.co_names


def test_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    reporter = progress.make_reporter(stream)
    reporter.start(done=10, total=100)
    reporter.advance(20)
    reporter.values(20, {"loss/d": 1.23456, "usage/block0": 0.5})
    reporter.note("a note")
    reporter.stop()
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("step  20/100  loss d 1.23  usage 50 %  [0:00 < ")
    assert lines[0].endswith("left]")
    assert lines[1] == "a note"


def test_a_bar_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    reporter = progress.make_reporter(stream)
    assert isinstance(reporter, progress.BarReporter)
    reporter.start(done=0, total=4)
    for step in range(1, 5):
        reporter.advance(step)
        reporter.values(step, {"fid[digits-cnn]/x": 1.0})
    reporter.note("fid[digits-cnn] 1.0")  # brackets are no markup
    reporter.stop()
    assert "4/4" in stream.getvalue()
    assert "fid[digits-cnn] 1.0" in stream.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3661, "1:01:01")])
def test_durations(seconds: float, text: str) -> None:
    assert progress.format_duration(seconds) == text


def test_run_folder_is_checked_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="does not exist"):
        RunFolder.open(tmp_path / "absent")
    with pytest.raises(RunError, match=r"has no config\.json"):
        RunFolder.open(tmp_path)
    run = RunFolder.create(tmp_path / "a" / "b")
    assert os.listdir(run.path) == []
    run.config.write_text('{"trainer": "toy"}')
    assert RunFolder.open(run.path).trainer() == "toy"
    with pytest.raises(RunError, match=r"already holds a run.*--resume"):
        RunFolder.create(run.path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot create the run folder .*a file, not a folder"):
        RunFolder.create(tmp_path / "file" / "run")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(RunError, match=r"cannot write into the run folder .*: permission denied"):
        RunFolder.create(tmp_path / "c")


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        MissingExtraError, match=r"drawing needs not_there, which is not installed.*\[train\]'"
    ):
        require("not_there.submodule", purpose="drawing")
    assert require("json", purpose="x").loads("1") == 1


def test_a_broken_package_is_reported_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_one.py").write_text("raise RuntimeError('operator does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match=r"fails to import \(operator does not exist\)"):
        require("broken_one", purpose="x")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_is_real(number: int) -> None:
    before = signal.getsignal(number)
    with StopRequest() as request:
        assert request.signal is None
        os.kill(os.getpid(), number)
        assert request.signal == number
        assert signal.getsignal(number) is before
    assert signal.getsignal(number) is before
