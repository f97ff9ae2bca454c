"""Imports run one way, and importing the package is light."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.import_graph import (
    PACKAGES,
    ROOT,
    child_graph,
    circles,
    imports,
    large_folders,
    module_graph,
    module_name,
    silent_lazy_imports,
    source_files,
)

PACKAGE = ROOT / "fq_toolkit"
FILES = source_files("fq_toolkit")
PAPERS = {"fqgan", "optimus", "prevalent"}
MOST_FILES = 15

# part -> the parts of the package that it may import besides itself
ALLOWED = {
    "cache": set(),  # where files live that can be made again: below everything
    "lazy": set(),  # names that are loaded on first use: below everything
    "kernels": {"cache"},
    "layers": {"kernels"},
    "training": {"kernels", "layers", "environment"},
    **{paper: {"cache", "lazy", "kernels", "layers", "training", "environment"} for paper in PAPERS},
    "environment": {"kernels"},
    "cli": {"kernels", "layers", "training", "environment", *PAPERS},
    "__main__": {"cli"},
    "__init__": {"lazy", "layers"},
}
# top-level module -> who may import it anywhere in a file, and who may import it while being imported
OWNERS = {"triton": lambda path: path.name.endswith("_triton.py")}
LAZY_OWNERS = {
    "transformers": lambda path: (
        part_of(path) in {"optimus", "prevalent"} or path.is_relative_to(PACKAGE / "layers" / "latent")
    )
}
# A torchvision built for another torch breaks torchmetrics and transformers; the others pull it in.
BANNED = {"torchvision", "torchaudio", "torch_fidelity", "cleanfid", "pytorch_fid", "lpips", "timm"}
CORE = {"torch", "numpy", "einops", "safetensors"}


def part_of(path: Path) -> str:
    """Return the first component under fq_toolkit: kernels, layers, cli, ..."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_run_one_way(path: Path) -> None:
    part = part_of(path)
    assert part in ALLOWED, f"{path}: a new part of the package; give it a place in ALLOWED"
    known = {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()} | {
        p.stem for p in PACKAGE.glob("*.py")
    }
    for module, line, _, _ in imports(path):
        pieces = module.split(".")
        if pieces[0] != "fq_toolkit" or len(pieces) < 2 or pieces[1] not in known:
            continue
        target = pieces[1]
        assert target == part or target in ALLOWED[part], (
            f"{path}:{line} imports {module}: {part} may import {sorted(ALLOWED[part]) or 'nothing else'}"
        )


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_heavy_modules_stay_with_their_owners(path: Path) -> None:
    for module, line, at_import, typing_only in imports(path):
        top = module.split(".")[0]
        assert top not in BANNED, f"{path}:{line} imports {module}, which must not be a dependency"
        if typing_only:
            continue
        if top in OWNERS:
            assert OWNERS[top](path), f"{path}:{line} imports {module}; only *_triton.py may"
        if top in LAZY_OWNERS:
            assert LAZY_OWNERS[top](path), f"{path}:{line} imports {module}; only its owners may"
            assert not at_import, f"{path}:{line} imports {module} at the top; import it where it is used"


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if part_of(p) in {"kernels", "layers", "__init__", "environment"}],
    ids=module_name,
)
def test_layers_need_only_the_core_dependencies(path: Path) -> None:
    for module, line, at_import, typing_only in imports(path):
        top = module.split(".")[0]
        if not at_import or typing_only or top in {"fq_toolkit", *CORE, *sys.stdlib_module_names}:
            continue
        if not (top == "triton" and path.name.endswith("_triton.py")):
            pytest.fail(f"{path}:{line} imports {module} at the top, which fq-toolkit alone does not install")


@pytest.mark.parametrize("root", ["tests", "benchmarks", "examples"])
def test_no_file_of_the_project_imports_torchvision(root: str) -> None:
    for path in source_files(root):
        assert not {entry.module.split(".")[0] for entry in imports(path)} & BANNED, path


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return module_graph()


def test_no_modules_import_each_other(graph: dict[str, set[str]]) -> None:
    assert circles(graph) == []


def test_sub_packages_import_one_way(graph: dict[str, set[str]]) -> None:
    packages = sorted(name for name in graph if any(other.startswith(f"{name}.") for other in graph))
    found = {package: circles(child_graph(package, graph)) for package in packages}
    assert {package: groups for package, groups in found.items() if groups} == {}


def test_folders_are_small() -> None:
    assert large_folders([*PACKAGES, "tests"], MOST_FILES) == {}


def test_lazy_imports_of_our_own_modules_say_why() -> None:
    found = {str(path.relative_to(ROOT)): silent_lazy_imports(path) for path in source_files(*PACKAGES)}
    silent = {name: lines for name, lines in found.items() if lines}
    assert silent == {}, (
        "imports of our own inside functions that no comment on the line or above it explains"
    )


def test_the_graph_sees_tables_lazy_imports_and_lazy_names(graph: dict[str, set[str]]) -> None:
    files = {module_name(path): path for path in source_files(*PACKAGES)}
    assert "fq_toolkit.prevalent.tasks.ndh.commands" in graph["fq_toolkit.cli"]  # by a table of names
    assert "fq_toolkit.layers.quantizer.feature_quantizer" in graph["fq_toolkit.layers"]
    assert graph["fq_toolkit"] == {"fq_toolkit.lazy"}  # its table of lazy names is not an import
    assert all(name not in used for name, used in graph.items())
    assert files.keys() == graph.keys()
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [["a", "b", "c"]]
    assert child_graph("p", {"p.a.x": {"p.b"}, "p.b": {"p.a.y"}, "q": {"p.a"}}) == {"a": {"b"}, "b": {"a"}}


def loaded_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(' '.join(sorted({{m.split('.')[0] for m in sys.modules}})))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(child.stdout.split())


@pytest.mark.parametrize(
    "statement",
    ["import fq_toolkit", "import fq_toolkit; fq_toolkit.FeatureQuantizer(4, 8)"],
    ids=["import", "layer"],
)
def test_import_is_lean(statement: str) -> None:
    # torch itself may load parts of what is on the list in some version; only what we add counts.
    heavy = {"triton", "transformers", "matplotlib", "scipy", "sklearn", "accelerate", "tyro", "rich", "PIL"}
    added = loaded_after(statement) - loaded_after("import torch")
    assert not added & heavy


def test_a_bare_import_loads_only_ourselves() -> None:
    added = loaded_after("import fq_toolkit") - loaded_after("pass")
    assert added - sys.stdlib_module_names <= {"fq_toolkit"} | {
        m for m in added if m.startswith(("_", "__editable"))
    }
