"""The packages whose public names are loaded on first use: every name, its home, and what that costs."""

import ast
import importlib
import subprocess
import sys
from types import ModuleType

import pytest

from tests.import_graph import lazy_table, module_name, parsed, source_files

TABLES = {module_name(path): path for path in source_files("fq_toolkit") if lazy_table(path)}
CORE = {"torch", "numpy", "einops", "safetensors", "fq_toolkit"}


@pytest.fixture(params=sorted(TABLES))
def package(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(request.param)


def test_each_name_is_defined_where_the_table_says(package: ModuleType) -> None:
    table = lazy_table(TABLES[package.__name__])
    listed = [name for name in package.__all__ if name != "__version__"]
    assert sorted(table) == sorted(listed)
    assert package.__all__ == sorted(package.__all__, key=lambda name: (not name[0].isupper(), name))
    assert set(package.__all__) <= set(dir(package))
    for name in listed:
        value = getattr(package, name)
        assert getattr(value, "__name__", name) == name
        assert value.__doc__, f"{package.__name__}.{name} has no docstring"
        assert vars(package)[name] is value, f"{name} is looked up again at each use"


def test_type_checkers_see_the_same_names(package: ModuleType) -> None:
    path = TABLES[package.__name__]
    seen = {
        alias.asname or alias.name: node.module
        for block in parsed(path).body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == lazy_table(path)


def test_an_unknown_name_is_answered_with_those_there_are(package: ModuleType) -> None:
    name = next(name for name in package.__all__ if len(name) > 6 and name != "__version__")
    with pytest.raises(AttributeError, match=rf"no attribute '{name[:-1]}'; it offers .*{name}"):
        getattr(package, name[:-1])


def test_all_names_together_load_only_the_core_dependencies(package: ModuleType) -> None:
    code = (
        f"import sys, torch; before = set(sys.modules); import {package.__name__} as package\n"
        "for name in package.__all__: getattr(package, name)\n"
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    added = {name for name in child.stdout.split() if not name.startswith(("_", "cython"))}
    assert added - set(sys.stdlib_module_names) <= CORE
