"""What all trainers of navigation share: schedules that follow the length of a run."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fq_toolkit.prevalent.tasks.hanna import config as hanna
from fq_toolkit.prevalent.tasks.navigator import NavigatorTask
from fq_toolkit.prevalent.tasks.ndh import config as ndh
from fq_toolkit.prevalent.tasks.pretraining import config as pretraining
from fq_toolkit.prevalent.tasks.pretraining.training import PretrainingTask
from fq_toolkit.prevalent.tasks.r2r import config as r2r

PRESETS = [preset for module in (r2r, ndh, hanna) for preset in module.PRESETS.values()]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.preset)
@given(tenths=st.integers(1, 10), factor=st.integers(2, 50))
def test_rates_and_teachers_follow_the_length_of_a_run(preset: Any, tenths: int, factor: int) -> None:
    short, long = (
        SimpleNamespace(config=dataclasses.replace(preset, steps=steps)) for steps in (20, 20 * factor)
    )
    step = 2 * tenths - 1
    rates = [
        NavigatorTask.rate_factor(task, at)  # type: ignore[arg-type]
        for task, at in ((short, step), (long, factor * step))
    ]
    assert rates[0] == pytest.approx(rates[1])
    assert rates[0] > 0
    for task in (short, long):
        ends = [
            NavigatorTask.teacher_probability(task, at)  # type: ignore[arg-type]
            for at in (0, task.config.steps - 1)
        ]
        assert ends == pytest.approx([preset.teacher_start, preset.teacher_end])


@pytest.mark.parametrize("preset", pretraining.PRESETS.values(), ids=lambda preset: preset.preset)
@given(steps=st.integers(2, 3000))
def test_pretraining_reaches_its_learning_rate_in_runs_of_any_length(preset: Any, steps: int) -> None:
    task: Any = SimpleNamespace(config=dataclasses.replace(preset, steps=steps))
    rates = [PretrainingTask.learning_rate(task, step) for step in range(steps)]
    assert all(0 < rate <= preset.lr for rate in rates)
    assert max(rates) >= 0.4 * preset.lr
