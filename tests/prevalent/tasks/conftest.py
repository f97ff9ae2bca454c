"""A finished run of speaker, NDH and HANNA each."""

from pathlib import Path

import pytest

from fq_toolkit.training.session import train
from tests.prevalent.tasks.small_runs import RUNS


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a finished run of each trainer."""
    folder = tmp_path_factory.mktemp("runs")
    for name, (trainer, config) in RUNS.items():
        result = train(trainer, config, out=folder / name)
        assert result.step == 4
        assert result.evaluation is not None
    return {name: folder / name for name in RUNS}
