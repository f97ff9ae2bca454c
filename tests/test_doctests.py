"""Every doctest of the package runs, and every public name has one."""

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch

import fq_toolkit

MODULES = ["fq_toolkit", *sorted(m.name for m in pkgutil.walk_packages(fq_toolkit.__path__, "fq_toolkit."))]
PUBLIC = [name for name in fq_toolkit.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_doctests(name: str) -> None:
    if name.endswith("_triton"):
        pytest.importorskip("triton", reason="triton is not installed")
    torch.manual_seed(0)
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented_with_an_example(name: str) -> None:
    value = getattr(fq_toolkit, name)
    text = inspect.getdoc(value) or ""
    assert text, f"{name} has no docstring"
    if not (inspect.isclass(value) and issubclass(value, tuple)):
        assert ">>> " in text, f"the docstring of {name} has no example"
