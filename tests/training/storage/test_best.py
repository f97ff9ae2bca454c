"""The best checkpoint: kept beside the newest, chosen by the curve, the same after any kill."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit.training.errors import CheckpointError, ConfigError
from fq_toolkit.training.reporting.metrics_log import MetricsLog, read_metrics
from fq_toolkit.training.storage.best import Best, Selection, parse_checkpoint, read_best
from fq_toolkit.training.storage.checkpoints import Checkpoints
from fq_toolkit.training.storage.run_folder import RunFolder
from tests.training.test_loop import Walk, go

FIGURES = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, math.nan, math.inf]), min_size=1, max_size=8)


class Measured(Walk):
    """A walk with figures that are given."""

    def __init__(self, figures: list[float], *, highest: bool) -> None:
        super().__init__()
        self.figures = figures
        self.selection = Selection("fid/x", highest)

    def state(self) -> dict[str, Any]:
        return {**super().state(), "steps": self.steps}

    def load_state(self, state: Any) -> None:
        super().load_state(state)
        self.steps = state["steps"]

    def evaluate(self) -> dict[str, float]:
        return {"fid/x": self.figures[self.steps - 1]}


class Killed(BaseException):
    """The process is gone."""


@settings(max_examples=25, deadline=None)
@given(figures=FIGURES, highest=st.booleans(), every=st.integers(1, 4))
def test_the_best_of_the_curve_is_kept_and_can_be_read(
    tmp_path_factory: pytest.TempPathFactory, figures: list[float], highest: bool, every: int
) -> None:
    path, count = tmp_path_factory.mktemp("run"), len(figures)
    go(Measured(figures, highest=highest), path, steps=count, checkpoint_every=every, evaluate_every=1)
    checkpoints = Checkpoints(path / "checkpoints", keep=2)
    finite = [value for value in figures if math.isfinite(value)]
    if not finite:
        assert checkpoints.best() is None
        with pytest.raises(CheckpointError, match="which checkpoint is the best"):
            checkpoints.load("best")
        return
    value = (max if highest else min)(finite)
    step = max(i + 1 for i, figure in enumerate(figures) if figure == value)  # of equal ones the last
    assert checkpoints.best() == Best(step, "fid/x", value)
    assert checkpoints.load("best").step == step
    assert checkpoints.load("last").step == count
    assert step in checkpoints.steps()
    assert len(checkpoints.steps()) <= 3


@pytest.mark.parametrize("at", range(1, 25))
def test_a_kill_anywhere_ends_in_the_same_files(
    tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = [3.0, 1.0, 2.0, 1.0, 0.5, 4.0, 0.5]
    options: dict[str, Any] = {"steps": 7, "checkpoint_every": 3, "evaluate_every": 1, "log_every": 2}
    go(Measured(figures, highest=False), tmp_path / "whole", **options)

    calls = 0

    def count(*_: Any, **__: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise Killed

    def killing(name: str, owner: Any, *, after: bool) -> None:
        original = getattr(owner, name)

        def replaced(*args: Any, **kwargs: Any) -> Any:
            if not after:
                count()
            result = original(*args, **kwargs)
            if after:
                count()
            return result

        monkeypatch.setattr(owner, name, replaced)

    for owner, name in ((Checkpoints, "save"), (Checkpoints, "mark_best"), (MetricsLog, "write")):
        killing(name, owner, after=False)
        killing(name, owner, after=True)
    try:
        go(Measured(figures, highest=False), tmp_path / "parts", **options)
    except Killed:
        torch.manual_seed(0)  # of no influence where there is a checkpoint, as in a process of its own
        go(Measured(figures, highest=False), tmp_path / "parts", resume=True, **options)
    else:
        assert at > 20
    ends = []
    for name in ("whole", "parts"):
        run = RunFolder(tmp_path / name)
        checkpoints = run.checkpoints()
        ends.append(
            (
                [{**row, "seconds": "seconds" in row} for row in read_metrics(run.metrics)],
                sorted(path.name for path in run.checkpoint_folder.iterdir()),
                checkpoints.best(),
                [checkpoints.load(which).state["task"]["place"].tolist() for which in ("best", "last")],
            )
        )
    assert ends[0] == ends[1]


def test_a_pointer_that_is_damaged_or_of_another_figure_costs_only_the_choice(tmp_path: Path) -> None:
    go(Measured([1.0, 2.0, 3.0], highest=False), tmp_path, steps=3, evaluate_every=1)
    pointer = tmp_path / "checkpoints" / "best.json"
    for text in ("", "[]", "{}", '{"step": "x", "column": 1, "value": []}', '{"step": 1, "column": "a"}'):
        pointer.write_text(text)
        assert read_best(pointer) is None
        assert Checkpoints(tmp_path / "checkpoints").load().step == 3
    assert Best(1, "SR/x", 0.9).yields_to(0.1, Selection("SPL/x", True))


def test_what_a_user_asks_for() -> None:
    assert [parse_checkpoint(text) for text in (None, "last", "best", "20", 7)] == [
        "last",
        "last",
        "best",
        20,
        7,
    ]
    for text in ("newest", "-1", "1.5", ""):
        with pytest.raises(ConfigError, match="expected best, last or the step"):
            parse_checkpoint(text)
