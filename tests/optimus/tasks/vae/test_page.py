"""docs/optimus.md: its Python runs, and the options it names exist."""

import re
from pathlib import Path
from typing import Any

import pytest

from fq_toolkit.optimus.tasks.vae.config import OptimusConfig
from fq_toolkit.optimus.tasks.vae.training import train


@pytest.fixture
def page(project_root: Path) -> str:
    return (project_root / "docs" / "optimus.md").read_text(encoding="utf-8")


def test_the_python_of_the_page_runs(page: str, tmp_path: Path) -> None:
    config = OptimusConfig(
        limit=100, steps=1, layers=1, width=16, heads=2, batch_size=4, eval_sentences=2, iw_samples=1,
        eval_analogies=1, checkpoint_every=0, device="cpu",
    )  # fmt: skip
    scope: dict[str, Any] = {"RUN": str(train(config, out=tmp_path / "run").run)}
    # "py", as it needs a run: the blocks of "python" run by themselves in tests/test_readme.py.
    (block,) = re.findall(r"^```py\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    exec(block, scope)
    said = re.findall(r"^vae\.(.*?)  # (.*)$", block, re.MULTILINE)
    values = [eval(f"vae.{call}", scope) for call, _ in said]
    assert [meaning for _, meaning in said] == ["(1, 32)", "8 sentences", "one sentence"]
    assert tuple(values[0].shape) == (1, 32)
    assert len(values[1]) == 8
    assert isinstance(values[2], str)


def test_options_that_the_page_names_exist(page: str) -> None:
    fields = set(OptimusConfig.__dataclass_fields__)
    elsewhere = {"resume", "temperature", "count", "quick", "report", "task", "checkpoint", "case"}
    for name in set(re.findall(r"`--([a-z-]+)", page)):
        assert name.replace("-", "_") in fields | elsewhere, name
