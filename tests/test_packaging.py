"""Nothing is lost between a checkout and a wheel: each folder is a package, each other file its data."""

import ast
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fq_toolkit"

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="Python 3.10 has no reader of TOML")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_folder_with_modules_is_a_package() -> None:
    include = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    found = {ROOT / Path(*name.split(".")) for name in find_packages(str(ROOT), include=include)}
    assert found == folders, "a folder without __init__.py would be missing from the wheel"


def test_every_other_file_is_package_data() -> None:
    patterns = [
        f"{package.replace('.', '/')}/{pattern}"
        for package, listed in PROJECT["tool"]["setuptools"]["package-data"].items()
        for pattern in listed
    ]
    others = [
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and "__pycache__" not in path.parts
    ]
    assert "fq_toolkit/py.typed" in others
    lost = [name for name in others if not any(fnmatch(name, pattern) for pattern in patterns)]
    assert not lost, "files that no pattern of package-data matches would be missing from the wheel"


def test_modules_named_for_mypy_exist() -> None:
    for override in PROJECT["tool"]["mypy"]["overrides"]:
        for name in override["module"]:
            assert (ROOT / Path(*name.split("."))).with_suffix(".py").exists(), name


def test_setup_py_holds_nothing_of_its_own() -> None:
    calls = [
        node for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())) if isinstance(node, ast.Call)
    ]
    assert [ast.unparse(call) for call in calls] == ["setup()"]
