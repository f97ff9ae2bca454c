"""A run folder is one state machine: whatever befalls it, a run starts, goes on or says why not."""

import copy
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fq_toolkit.training.errors import CheckpointError, ConfigError, RunError
from fq_toolkit.training.reporting.metrics_log import read_metrics
from fq_toolkit.training.session import dry_run, train
from fq_toolkit.training.storage import run_lock
from fq_toolkit.training.storage.checkpoints import Checkpoints
from fq_toolkit.training.storage.run_folder import RunFolder
from fq_toolkit.training.storage.run_lock import RunLock
from tests.training.test_session import WALK, Walk, WalkConfig

LONG = WalkConfig(steps=6, log_every=1, checkpoint_every=2, keep_checkpoints=3)


def figures(run: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(run / "metrics.csv")]


def newest(run: Path) -> Path:
    checkpoints = Checkpoints(run / "checkpoints")
    return checkpoints.folder / f"step_{checkpoints.steps()[-1]:08d}.json"


def make_older(path: Path) -> None:
    """Rewrite the JSON of a checkpoint as the first format was."""
    record = json.loads(path.read_text())
    del record["about"], record["checksum"]
    path.write_text(json.dumps(record | {"format": 1}))


# -- before the first checkpoint


@pytest.mark.parametrize("rows", [0, 1])
def test_a_run_without_a_checkpoint_starts_again_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    whole = train(WALK, WalkConfig(log_every=1), out=tmp_path / "whole")
    step = Walk.step

    def killed(self: Walk, index: int) -> dict[str, Tensor]:
        if index == rows:
            raise KeyboardInterrupt
        return step(self, index)

    monkeypatch.setattr(Walk, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(WALK, WalkConfig(log_every=1), out=tmp_path / "run")
    monkeypatch.undo()
    assert len(figures(tmp_path / "run")) == rows
    with pytest.raises(RunError, match="go on with it"):
        train(WALK, WalkConfig(log_every=1), out=tmp_path / "run")
    assert "0.000 s a step" in dry_run(WALK, WalkConfig(log_every=1), resume=tmp_path / "run")
    resumed = train(WALK, resume=tmp_path / "run")
    assert resumed.evaluation == whole.evaluation
    assert figures(resumed.run) == figures(whole.run)


def test_an_ended_run_that_lost_its_checkpoints_is_not_started_again(tmp_path: Path) -> None:
    run = train(WALK, LONG, out=tmp_path / "run").run
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    rows = figures(run)
    with pytest.raises(RunError, match="its checkpoints are gone"):
        train(WALK, resume=run)
    assert figures(run) == rows


# -- what a checkpoint is of


def test_an_option_that_changed_in_the_folder_is_shown_and_refused(tmp_path: Path) -> None:
    run = train(WALK, LONG, out=tmp_path / "run", stop_after=4).run
    text = (run / "config.json").read_text()
    (run / "config.json").write_text(text.replace('"rate": 1.0', '"rate": 100.0'))
    for use in (
        lambda: train(WALK, resume=run),
        lambda: dry_run(WALK, replace(LONG, rate=100.0), resume=run),
    ):
        with pytest.raises(
            ConfigError, match=r"step 4 .* was made with other options[^!]*rate: 1\.0 -> 100\.0"
        ):
            use()
    (run / "config.json").write_text(text.replace('"steps": 6', '"steps": 5'))  # one that may change
    assert train(WALK, resume=run).step == 5


def test_an_option_left_out_of_the_folder_has_its_default(tmp_path: Path) -> None:
    run = train(WALK, replace(LONG, rate=2.0), out=tmp_path / "run", stop_after=4).run
    options = json.loads((run / "config.json").read_text())
    del options["rate"]
    (run / "config.json").write_text(json.dumps(options))
    with pytest.raises(ConfigError, match=r"rate: 2\.0 -> 1\.0"):
        train(WALK, resume=run)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    mine = train(WALK, LONG, out=tmp_path / "mine", stop_after=4).run
    other = train(WALK, replace(LONG, rate=3.0), out=tmp_path / "other", stop_after=4).run
    for path in (other / "checkpoints").iterdir():
        (mine / "checkpoints" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ConfigError, match=r"rate: 3\.0 -> 1\.0"):
        train(WALK, resume=mine)
    stranger = replace(WALK, name="stroll")
    (mine / "config.json").write_text((mine / "config.json").read_text().replace('"walk"', '"stroll"'))
    with pytest.raises(CheckpointError, match=r"trainer 'walk'.*'stroll'"):
        train(stranger, resume=mine)
    with pytest.raises(CheckpointError, match=r"trainer 'walk'.*'stroll'"):
        RunFolder(mine).load_checkpoint()


def test_looking_at_a_changed_run_says_what_changed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = train(WALK, LONG, out=tmp_path / "run").run
    (run / "config.json").write_text((run / "config.json").read_text().replace('"rate": 1.0', '"rate": 2.0'))
    assert RunFolder(run).load_checkpoint(4).step == 4
    assert "rate: 1.0 -> 2.0" in caplog.text


def test_a_checkpoint_under_another_name_is_refused(tmp_path: Path) -> None:
    run = train(WALK, LONG, out=tmp_path / "run", stop_after=4).run
    for path in list((run / "checkpoints").glob("step_00000002.*")):
        path.rename(path.with_stem("step_00000005"))
    with pytest.raises(CheckpointError, match="it is of step 2"):
        train(WALK, resume=run)


def test_a_checkpoint_of_the_first_format_goes_on_and_says_what_is_unchecked(tmp_path: Path) -> None:
    notes: list[str] = []

    class Notes:
        def __getattr__(self, name: str) -> Any:
            return (lambda text: notes.append(text)) if name == "note" else (lambda *_, **__: None)

    whole = train(WALK, LONG, out=tmp_path / "whole")
    run = train(WALK, LONG, out=tmp_path / "run", stop_after=4).run
    make_older(newest(run))
    assert train(WALK, resume=run, reporter=Notes()).evaluation == whole.evaluation  # type: ignore[arg-type]
    assert any("older version" in note and "cannot be checked" in note for note in notes)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to every value in JSON, but for the inner words of long lists."""
    found = [path]
    if isinstance(value, dict):
        found += [place for key in value for place in places(value[key], (*path, key))]
    if isinstance(value, list):
        found += [place for i in range(min(3, len(value))) for place in places(value[i], (*path, i))]
    return found


WRONG = (None, True, -1, 10**400, 1e308, float("nan"), "x", "\0", [], {}, [[]], {"$tensor": []},
         {"$pairs": 3}, {"$tuple": None}, {"$pairs": [[[], 1]]}, "DEEP", "GONE", "DIGIT")  # fmt: skip


def mutated(record: Any, place: tuple[Any, ...], wrong: Any) -> str:
    """Return the text of a record with another value, none, or absurd depth in one place."""
    record = copy.deepcopy(record)
    holder = {"": record}
    way = ("", *place)
    at: Any = holder
    for key in way[:-1]:
        at = at[key]
    if wrong == "GONE" and place:
        del at[way[-1]]
    elif wrong == "DIGIT":
        old = at[way[-1]]
        at[way[-1]] = old + 1 if type(old) in (int, float) else [old]
    else:
        at[way[-1]] = wrong
    text = json.dumps(holder[""])
    return text.replace('"DEEP"', "[" * 100_000 + "]" * 100_000)


@pytest.mark.parametrize("older", [False, True], ids=["format 2", "format 1"])
def test_no_change_of_a_checkpoint_is_more_than_a_sentence(tmp_path: Path, older: bool) -> None:
    """Every JSON value in turn becomes something else; a new format refuses all, an old one what it can."""
    run = train(WALK, LONG, out=tmp_path / "run", stop_after=3).run
    path = newest(run)
    if older:
        make_older(path)
    text = path.read_text()
    record = json.loads(text)
    draw = random.Random(0)
    refused = 0
    cases = [(place, wrong) for place in places(record) for wrong in WRONG]
    for place, wrong in draw.sample(cases, min(len(cases), 400)):
        changed = mutated(record, place, wrong)
        if json.loads(text) == (json.loads(changed) if wrong != "DEEP" else None):
            continue
        path.write_text(changed)
        for use in (lambda: dry_run(WALK, LONG, resume=run), lambda: RunFolder(run).load_checkpoint()):
            try:
                use()
            except (RunError, ConfigError):
                refused += 1
            else:
                assert older, (place, wrong)
    assert refused
    for cut in range(0, len(text), max(1, len(text) // 40)):
        path.write_text(text[:cut])
        with pytest.raises(CheckpointError):
            train(WALK, resume=run)


def test_no_change_of_the_options_is_more_than_a_sentence(tmp_path: Path) -> None:
    run = train(WALK, LONG, out=tmp_path / "run", stop_after=3).run
    path = run / "config.json"
    text = path.read_text()
    record = json.loads(text)
    for place in places(record):
        for wrong in WRONG:
            path.write_text(mutated(record, place, wrong))
            try:
                dry_run(WALK, LONG, resume=run)
                RunFolder(run).trainer()
            except (RunError, ConfigError):
                pass
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(ConfigError, match="not valid JSON"):
        train(WALK, resume=run)


# -- one trainer at a time


HOLD = """
import sys, time
from pathlib import Path
from fq_toolkit.training.storage.run_lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


def test_the_second_of_two_is_told_who_is_there(tmp_path: Path) -> None:
    run = train(WALK, LONG, out=tmp_path / "run", stop_after=4).run
    child = hold(run)
    try:
        with pytest.raises(RunError, match=f"is being trained by process {child.pid} on "):
            train(WALK, resume=run)
    finally:
        child.kill()
        child.wait()
    assert (run / run_lock.NAME).exists()  # of a process that was killed: stale at once
    assert train(WALK, resume=run).step == 6
    assert not (run / run_lock.NAME).exists()


def test_one_process_cannot_train_twice_in_a_folder(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        with pytest.raises(RunError, match=f"by process {os.getpid()} on"), RunLock(tmp_path):
            pass
        with pytest.raises(RunError), RunLock(tmp_path):  # and the refusal gave nothing up
            pass
    with RunLock(tmp_path):
        pass


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"pid": "x", "host": 3}', "[" * 5000, '{"pid": 99999999}']
)
def test_a_lock_file_that_says_nothing_is_no_obstacle(
    tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "BEAT", 0.01)
    monkeypatch.setattr(run_lock, "PATIENCE", 0.05)
    (tmp_path / run_lock.NAME).write_text(content)
    with RunLock(tmp_path):
        pass


@pytest.mark.parametrize("alive", [False, True])
def test_a_holder_on_another_machine_is_watched(
    tmp_path: Path, alive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the kernel's locks hold on one machine only, the file must show that its holder lives."""
    monkeypatch.setattr(run_lock, "BEAT", 0.02)
    monkeypatch.setattr(run_lock, "PATIENCE", 0.3)
    with RunLock(tmp_path):
        record = json.loads((tmp_path / run_lock.NAME).read_text())
    path = tmp_path / run_lock.NAME
    path.write_text(json.dumps(record | {"host": "elsewhere"}))
    if not alive:
        with RunLock(tmp_path):
            return
    sleep = time.sleep

    def touching(seconds: float) -> None:
        sleep(seconds)
        os.utime(path)

    monkeypatch.setattr(run_lock.time, "sleep", touching)
    with pytest.raises(RunError, match="on elsewhere"), RunLock(tmp_path):
        pass


# -- what lies around the run


def test_memory_that_runs_out_is_told_with_what_is_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Walk.step
    errors: list[Exception] = [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
    ]
    for number, error in enumerate(errors):

        def hungry(self: Walk, index: int, error: Exception = error) -> dict[str, Tensor]:
            if index == 3:
                raise error
            return step(self, index)

        monkeypatch.setattr(Walk, "step", hungry)
        with pytest.raises(
            RunError, match=r"out of memory after step 3\. The checkpoint of step 2 is intact"
        ):
            train(WALK, LONG, out=tmp_path / str(number))
        monkeypatch.setattr(Walk, "step", step)
        assert train(WALK, resume=tmp_path / str(number)).step == 6

    monkeypatch.setattr(Walk, "__init__", lambda *_: torch.empty(2**60))
    with pytest.raises(RunError, match="out of memory before the first step"):
        train(WALK, LONG, out=tmp_path / "never")
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("options", [LONG, replace(LONG, checkpoint_every=0)], ids=["saving", "logging"])
def test_a_folder_that_goes_away_is_told_truly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: WalkConfig
) -> None:
    step = Walk.step

    def moved(self: Walk, index: int) -> dict[str, Tensor]:
        if index == 3:
            (tmp_path / "run").rename(tmp_path / "elsewhere")
        return step(self, index)

    monkeypatch.setattr(Walk, "step", moved)
    with pytest.raises(RunError, match="run is gone: it was deleted or moved") as caught:
        train(WALK, options, out=tmp_path / "run")
    assert "intact" not in str(caught.value)
    assert not (tmp_path / "run").exists()  # no half of a run comes back


@pytest.mark.parametrize("content", ["", "\n", "\0" * 100])
def test_an_empty_table_beside_whole_checkpoints_is_begun_again(tmp_path: Path, content: str) -> None:
    run = train(WALK, LONG, out=tmp_path / "run", stop_after=4).run
    (run / "metrics.csv").write_text(content)
    train(WALK, resume=run)
    assert [row["step"] for row in figures(run)] == [4, 5, 6]


def test_a_table_that_was_removed_on_the_way_keeps_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Walk.step

    def removed(self: Walk, index: int) -> dict[str, Tensor]:
        if index == 3:
            (tmp_path / "run" / "metrics.csv").unlink()
        return step(self, index)

    monkeypatch.setattr(Walk, "step", removed)
    assert [row["step"] for row in figures(train(WALK, LONG, out=tmp_path / "run").run)] == [4, 5, 6]


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "/".join(["x" * 200] * 30)], ids=["long", "NUL", "deep"])
def test_a_path_that_cannot_be_is_told_before_anything(tmp_path: Path, name: str) -> None:
    for use in (
        lambda: train(WALK, LONG, out=tmp_path / name),
        lambda: train(WALK, resume=tmp_path / name),
        lambda: RunFolder.open(tmp_path / name),
    ):
        with pytest.raises(RunError, match="cannot be a run folder: ") as caught:
            use()
        assert len(str(caught.value)) < 300
    assert not any(tmp_path.iterdir())


# -- signals and output


def test_every_polite_signal_saves_and_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    step = Walk.step
    # Under nohup a process ignores SIGHUP, which a training respects.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    request.addfinalizer(lambda: signal.signal(signal.SIGHUP, before))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):

        def interrupted(self: Walk, index: int, number: signal.Signals = number) -> dict[str, Tensor]:
            if index == 2:
                signal.raise_signal(number)
            return step(self, index)

        monkeypatch.setattr(Walk, "step", interrupted)
        result = train(WALK, LONG, out=tmp_path / number.name)
        assert (result.step, result.signal) == (3, number)
        monkeypatch.setattr(Walk, "step", step)
        assert train(WALK, resume=result.run).step == 6


def test_a_run_under_nohup_outlives_its_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Walk.step

    def hung_up(self: Walk, index: int) -> dict[str, Tensor]:
        signal.raise_signal(signal.SIGHUP)
        return step(self, index)

    monkeypatch.setattr(Walk, "step", hung_up)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert train(WALK, LONG, out=tmp_path / "run").signal is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_warning_before_the_end_does_not_make_the_end_rude(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler sends SIGUSR1, or a terminal SIGHUP, and SIGTERM soon after: the run is still saved."""
    step = Walk.step

    def warned(self: Walk, index: int) -> dict[str, Tensor]:
        for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):
            signal.raise_signal(number)
        return step(self, index)

    monkeypatch.setattr(Walk, "step", warned)
    result = train(WALK, LONG, out=tmp_path / "run")
    assert (result.step, result.signal) == (1, signal.SIGUSR1)


@pytest.mark.parametrize(
    "error",
    [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left"), ValueError("I/O on closed file"),
     UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_a_reporter_that_cannot_write_ends_nothing(tmp_path: Path, error: Exception) -> None:
    class Dead:
        def __getattr__(self, name: str) -> Any:
            def fail(*_: Any, **__: Any) -> None:
                raise error

            return fail

    whole = train(WALK, LONG, out=tmp_path / "whole")
    assert train(WALK, LONG, out=tmp_path / "run", reporter=Dead()).evaluation == whole.evaluation  # type: ignore[arg-type]
