"""`fq-toolkit env` tells the truth about this machine."""

from pathlib import Path

import pytest
import torch

from fq_toolkit import environment
from fq_toolkit.kernels import ops


def fake_torchvision(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(str(folder))


def test_names_versions_and_every_backend() -> None:
    text = environment.report()
    assert torch.__version__ in text
    for backend, status in ops.backend_report().items():
        assert f"  {backend}".ljust(12) + f" {status}" in text
    assert f"{ops.select_backend(torch.empty(0))} on cpu tensors" in text


def test_a_broken_torchvision_is_named_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_torchvision(tmp_path, "raise RuntimeError('operator torchvision::nms does not exist')", monkeypatch)
    text = environment.check_torchvision()
    assert "operator torchvision::nms does not exist" in text
    assert "pip uninstall torchvision" in text
    assert "fq-toolkit" in environment.report()  # the report itself survives it


def test_a_working_and_an_absent_torchvision_are_no_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert environment.check_torchvision().startswith("not installed")
    fake_torchvision(tmp_path, "", monkeypatch)
    assert environment.check_torchvision() == "works"


def test_a_wrong_backend_variable_is_shown_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FQ_TOOLKIT_BACKEND", "cuda")
    text = environment.report()
    assert "FQ_TOOLKIT_BACKEND='cuda' is not a backend" in text
    assert "FQ_TOOLKIT_BACKEND=cuda" in text


def test_a_missing_extra_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    version = environment._version
    monkeypatch.setattr(environment, "_version", lambda name: None if name == "tyro" else version(name))
    assert "[train] without tyro: pip install 'fq-toolkit[train]'" in environment.report()
