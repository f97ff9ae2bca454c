"""Output that cannot be written, and names that would command a terminal."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fq_toolkit import cli
from fq_toolkit.training.reporting.output import Outlet, printable

# The command line with one more trainer, which needs neither data nor time.
WALKING = """
import sys, types
from fq_toolkit import cli
from fq_toolkit.training.train_command import run_train_command
from tests.training.test_session import WALK, WalkConfig

sys.modules["walking"] = types.SimpleNamespace(
    train_command=lambda words: run_train_command(
        WALK, words, defaults=lambda _: WalkConfig(), description=""
    )
)
cli.TRAINERS["walk"] = "walking"
sys.exit(cli.main())
"""
ROOT = Path(__file__).resolve().parents[3]
EVIL = "cat\x1b[31m\x1b]0;mine\x07\x9b1m\u202e\r"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@given(st.text())
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    shown = printable(text)
    assert all(char in "\t\n" or not (ord(char) < 32 or 127 <= ord(char) < 160) for char in shown)
    assert printable(shown) == shown
    if text.isascii() and text.isprintable():
        assert shown == text


def test_names_are_escaped_on_terminals_only() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    Outlet(terminal).write(EVIL + "\n")
    Outlet(pipe).write(EVIL + "\n")
    assert terminal.getvalue() == "cat\\x1b[31m\\x1b]0;mine\\x07\\x9b1m\\u202e\\r\n"
    assert pipe.getvalue() == EVIL + "\n"


def test_errors_of_commands_escape_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert cli.main(["sample", str(tmp_path / EVIL)]) == 1
    assert "\x1b" not in terminal.getvalue()
    assert "cat\\x1b[31m" in terminal.getvalue()
    assert sys.stderr is terminal


def test_the_bar_escapes_names() -> None:
    from fq_toolkit.training.reporting.progress import make_reporter

    terminal = Terminal()
    reporter = make_reporter(Outlet(terminal))  # type: ignore[arg-type]
    reporter.note(EVIL)
    assert "\x1b[31m" not in terminal.getvalue()
    assert "cat\\x1b[31m" in terminal.getvalue()


class Failing(io.StringIO):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.failure = error

    def write(self, text: str) -> int:
        raise self.failure


@pytest.mark.parametrize("error", [BrokenPipeError(32, "x"), OSError(28, "full"), ValueError("closed file")])
def test_a_stream_that_fails_is_silent_from_then_on(error: Exception) -> None:
    outlet = Outlet(Failing(error))
    for _ in range(3):
        assert outlet.write("text") == 4
        outlet.flush()
    assert outlet.error is error


def test_text_that_the_encoding_lacks_is_written_out() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Outlet(stream).write("caf\u00e9 \udcff\n")
    stream.flush()
    assert stream.buffer.getvalue() == b"caf\\xe9 \\udcff\n"  # type: ignore[attr-defined]
    Outlet(None).write("to nobody")


def fq(*words: "str | bytes", **streams: object) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", WALKING, *words]
    return subprocess.Popen(command, cwd=ROOT, **streams)  # type: ignore[call-overload, no-any-return]


def test_help_into_a_reader_that_went_away_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    child = fq("--help", stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert child.communicate(timeout=120)[1] == b""
    assert child.returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_the_output_is_told() -> None:
    with open("/dev/full", "wb") as full:
        child = fq("train", "walk", "--print-config", stdout=full, stderr=subprocess.PIPE)
        assert b"the output could not be written" in child.communicate(timeout=120)[1]
    assert child.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_training_outlives_its_streams_and_takes_any_path(tmp_path: Path) -> None:
    """A dead reader of one stream, a full disk behind the other, and a folder whose name is no text."""
    run = os.fsencode(tmp_path) + b"/r\xff\x1b[31mn"
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "wb") as full:
        child = fq("train", "walk", "--log-every", "1", "--out", run, stdout=full, stderr=writer)
        os.close(writer)
        assert child.wait(timeout=300) == 0
    assert os.path.exists(run + b"/evaluation.json")
    child = fq("train", "walk", "--resume", run, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = child.communicate(timeout=300)
    assert child.returncode == 0, err
    assert b"run folder: " in out
