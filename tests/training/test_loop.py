import json
import signal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from fq_toolkit.training.errors import CheckpointError, DivergedError, RunError
from fq_toolkit.training.loop import RETURNS, Schedule, run_loop
from fq_toolkit.training.reporting.metrics_log import MetricsLog, read_metrics
from fq_toolkit.training.reporting.progress import SilentReporter
from fq_toolkit.training.storage.best import Selection
from fq_toolkit.training.storage.run_folder import RunFolder
from fq_toolkit.training.task import LoopResult


class Walk:
    """A random walk: as a task as small as it gets."""

    selection: Selection | None = None

    def __init__(self, bad_step: int | None = None) -> None:
        self.place = torch.zeros(3)
        self.bad_step = bad_step
        self.evaluations: list[int] = []
        self.steps = 0
        self.visits: Counter[int] = Counter()

    def step(self, step: int) -> dict[str, Tensor]:
        self.steps += 1
        self.visits[step] += 1
        self.place += torch.randn(3)
        if step == self.bad_step:
            self.place[0] = float("nan")
        return {"loss/x": self.place.sum()}

    def gauges(self) -> dict[str, float]:
        return {"usage/x": 0.5}

    def evaluate(self) -> dict[str, float]:
        self.evaluations.append(self.steps)
        return {"fid/x": float(self.place.norm())}

    def is_finite(self) -> bool:
        return bool(self.place.isfinite().all())

    def state(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.place.copy_(state["place"])


def go(task: Walk, path: Path, *, steps: int = 20, resume: bool = False, **options: Any) -> LoopResult:
    run = RunFolder(path)
    path.mkdir(exist_ok=True)
    if not resume:
        torch.manual_seed(0)
    return run_loop(
        task,
        accelerator=Accelerator(cpu=True),
        run=run,
        metrics=MetricsLog(run.metrics, ["seconds", "loss/x", "usage/x", "fid/x"]),
        schedule=Schedule(
            steps,
            options.pop("log_every", 5),
            options.pop("checkpoint_every", 10),
            options.pop("evaluate_every", 0),
        ),
        reporter=SilentReporter(),
        keep_checkpoints=2,
        resume=resume,
        **options,
    )


def test_the_last_step_logs_saves_and_evaluates(tmp_path: Path) -> None:
    task = Walk()
    result = go(task, tmp_path, steps=13, log_every=5, checkpoint_every=0)
    assert result.step == 13
    assert result.signal is None
    assert result.evaluation == {"fid/x": float(task.place.norm())}
    assert RunFolder(tmp_path).checkpoints().steps() == [13]
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.csv")] == [5, 10, 13]


def test_means_are_over_the_steps_since_the_last_row(tmp_path: Path) -> None:
    values = []

    class Recorded(Walk):
        def step(self, step: int) -> dict[str, Tensor]:
            result = super().step(step)
            values.append(float(result["loss/x"]))
            return result

    go(Recorded(), tmp_path, steps=10, log_every=4, checkpoint_every=5)
    rows = read_metrics(tmp_path / "metrics.csv")
    expected = [sum(values[a:b]) / (b - a) for a, b in ((0, 4), (4, 8), (8, 10))]
    assert [row["loss/x"] for row in rows] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("stop", [1, 7, 10, 19])
def test_stopping_and_going_on_changes_nothing(tmp_path: Path, stop: int) -> None:
    straight, first, second = Walk(), Walk(), Walk()
    go(straight, tmp_path / "a")
    stopped = go(first, tmp_path / "b", stop_after=stop)
    assert stopped.step == stop
    assert stopped.evaluation == {}
    torch.manual_seed(123)
    go(second, tmp_path / "b", resume=True)
    assert torch.equal(straight.place, second.place)
    assert first.steps + second.steps == 20


def test_how_often_one_looks_changes_nothing(tmp_path: Path) -> None:
    one, other = Walk(), Walk()
    go(one, tmp_path / "a", log_every=1, checkpoint_every=1, evaluate_every=3)
    go(other, tmp_path / "b", log_every=20, checkpoint_every=0)
    assert torch.equal(one.place, other.place)
    assert one.evaluations == [3, 6, 9, 12, 15, 18, 20]


def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    straight, again = Walk(), Walk()
    go(straight, tmp_path / "a", steps=20)
    go(Walk(), tmp_path / "b", steps=8)
    go(again, tmp_path / "b", steps=20, resume=True)
    assert torch.equal(straight.place, again.place)
    with pytest.raises(RunError, match="has done 20 steps, more than the 8"):
        go(Walk(), tmp_path / "b", steps=8, resume=True)
    assert go(Walk(), tmp_path / "b", steps=20, resume=True).evaluation  # nothing to do but to look


@pytest.mark.parametrize("bad_step", [0, 9, 13, 19])
def test_nan_that_comes_again_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path, bad_step: int) -> None:
    task = Walk(bad_step)
    with pytest.raises(DivergedError, match="loss/x is not finite at step") as caught:
        go(task, tmp_path)
    kept = RunFolder(tmp_path).checkpoints().steps()
    if bad_step < 10:
        assert kept == []
        assert "No checkpoint had been saved" in str(caught.value)
    else:
        assert kept == [10]
        assert "checkpoint of step 10" in str(caught.value)
        assert f"went back to it {RETURNS} times" in str(caught.value)
        assert task.visits[bad_step] == 1 + RETURNS
        assert RunFolder(tmp_path).checkpoints().load().state["task"]["place"].isfinite().all()


class Stumble(Walk):
    """A walk that meets a NaN in the first so many visits of a step."""

    def __init__(self, bad_step: int, times: int) -> None:
        super().__init__()
        self.stumbles = {bad_step: times}

    def step(self, step: int) -> dict[str, Tensor]:
        values = super().step(step)
        if self.visits[step] <= self.stumbles.get(step, 0):
            self.place[0] = float("nan")
        return {"loss/x": values["loss/x"] + self.place[0]}


@pytest.mark.parametrize("times", [1, RETURNS])
def test_nan_returns_to_the_last_good_checkpoint_and_goes_on(tmp_path: Path, times: int) -> None:
    straight, first, second = Walk(), Stumble(13, times), Stumble(13, times)
    go(straight, tmp_path / "a")
    result = go(first, tmp_path / "b")
    assert result.step == 20
    assert first.visits == {**dict.fromkeys(range(10), 1), **dict.fromkeys(range(10, 15), times + 1)} | (
        dict.fromkeys(range(15, 20), 1)
    )
    assert [row["step"] for row in read_metrics(tmp_path / "b" / "metrics.csv")] == [5, 10, 15, 20]
    assert first.is_finite()
    assert not torch.equal(first.place, straight.place)  # other numbers, or the same would come again
    go(second, tmp_path / "c")
    assert torch.equal(first.place, second.place)


def test_each_return_draws_other_numbers(tmp_path: Path) -> None:
    places = []

    class Recorded(Stumble):
        def step(self, step: int) -> dict[str, Tensor]:
            if step == 11:
                places.append(self.place.clone())
            return super().step(step)

    go(Recorded(13, RETURNS), tmp_path)
    assert len({tuple(place.tolist()) for place in places}) == 1 + RETURNS


def test_a_new_checkpoint_gives_new_returns(tmp_path: Path) -> None:
    task = Stumble(7, RETURNS)
    task.stumbles[12] = RETURNS
    assert go(task, tmp_path, checkpoint_every=5).step == 20
    assert task.visits[6] == task.visits[11] == 1 + RETURNS


def test_a_return_that_was_cut_off_is_the_same_after_resuming(tmp_path: Path) -> None:
    whole, first, second = Stumble(13, 1), Stumble(13, 1), Stumble(13, 0)
    go(whole, tmp_path / "a")
    go(first, tmp_path / "b", stop_after=17)
    go(second, tmp_path / "b", resume=True)
    assert torch.equal(whole.place, second.place)


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    class Quiet(Walk):
        def step(self, step: int) -> dict[str, Tensor]:
            super().step(step)
            return {"loss/x": torch.zeros(())}

    with pytest.raises(DivergedError, match="a weight is not finite at step 20"):
        go(Quiet(bad_step=15), tmp_path)
    assert RunFolder(tmp_path).checkpoints().steps() == [10]


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    go(Walk(), tmp_path, steps=5)
    checkpoints = RunFolder(tmp_path).checkpoints()
    _, saved = checkpoints.load()
    checkpoints.save(6, saved | {"num_processes": 4})
    with pytest.raises(RunError, match="trained by 4 processes and cannot go on with 1"):
        go(Walk(), tmp_path, resume=True)


def figures(path: Path) -> list[dict[str, float]]:
    """The rows of a run, without the time they took."""
    return [
        {name: value for name, value in row.items() if name != "seconds"}
        for row in read_metrics(path / "metrics.csv")
    ]


def drop_rows(path: Path, count: int) -> None:
    """Leave a run as a kill between its last checkpoint and its last rows does."""
    lines = (path / "metrics.csv").read_text().splitlines(keepends=True)
    (path / "metrics.csv").write_text("".join(lines[: len(lines) - count]))


SCHEDULES = (
    {},
    {"log_every": 3, "checkpoint_every": 4, "evaluate_every": 6},
    {"log_every": 7, "evaluate_every": 5},
)


@pytest.mark.parametrize("options", SCHEDULES, ids=str)
@pytest.mark.parametrize("lost", [False, True])
def test_an_interruption_anywhere_changes_no_row(tmp_path: Path, options: dict[str, int], lost: bool) -> None:
    go(Walk(), tmp_path / "a", **options)
    for stop in range(1, 20):
        path = tmp_path / f"b{stop}"
        go(Walk(), path, stop_after=stop, **options)
        if lost and figures(path) and figures(path)[-1]["step"] == stop:
            drop_rows(path, 1)
        go(Walk(), path, resume=True, **options)
        assert figures(path) == figures(tmp_path / "a"), stop


@pytest.mark.parametrize("error", [KeyError("place"), RuntimeError("size mismatch"), ValueError("groups")])
def test_a_checkpoint_of_another_model_is_told(tmp_path: Path, error: Exception) -> None:
    class Other(Walk):
        def load_state(self, state: Mapping[str, Any]) -> None:
            raise error

    go(Walk(), tmp_path, stop_after=7)
    with pytest.raises(CheckpointError, match="does not fit what was built"):
        go(Other(), tmp_path, resume=True)


@pytest.mark.parametrize("part", ["task", "rng", "seconds", "num_processes"])
def test_an_incomplete_checkpoint_is_told(tmp_path: Path, part: str) -> None:
    go(Walk(), tmp_path, stop_after=7)
    path = tmp_path / "checkpoints" / "step_00000007.json"
    record = json.loads(path.read_text())
    del record["state"][part], record["about"], record["checksum"]
    record["format"] = 1  # a newer one has a checksum, which would be the first to tell
    path.write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=f"it lacks {part}"):
        go(Walk(), tmp_path, resume=True)


def test_a_kill_in_the_last_evaluation_loses_no_row(tmp_path: Path) -> None:
    go(Walk(), tmp_path / "a")
    whole = figures(tmp_path / "a")
    drop_rows(tmp_path / "a", 1)
    go(Walk(), tmp_path / "a", resume=True)
    assert figures(tmp_path / "a") == whole


def test_a_signal_in_the_last_step_is_a_stop_that_can_be_gone_on_from(tmp_path: Path) -> None:
    class Interrupted(Walk):
        def step(self, step: int) -> dict[str, Tensor]:
            if step == 19:
                signal.raise_signal(signal.SIGTERM)
            return super().step(step)

    stopped = go(Interrupted(), tmp_path / "a")
    assert (stopped.step, stopped.signal) == (20, signal.SIGTERM)
    assert go(Walk(), tmp_path / "a", resume=True).evaluation
    go(Walk(), tmp_path / "b")
    assert figures(tmp_path / "a") == figures(tmp_path / "b")


def test_a_return_keeps_the_steps_before_the_checkpoint_in_the_row(tmp_path: Path) -> None:
    losses: dict[int, float] = {}

    class Once(Walk):
        def step(self, step: int) -> dict[str, Tensor]:
            self.bad_step = 13 if not self.visits[13] else None
            result = super().step(step)
            losses[step] = float(result["loss/x"])
            return result

    go(Once(), tmp_path, log_every=8, checkpoint_every=10)
    rows = {row["step"]: row["loss/x"] for row in read_metrics(tmp_path / "metrics.csv")}
    assert rows[16] == pytest.approx(sum(losses[i] for i in range(8, 16)) / 8, rel=1e-5)
