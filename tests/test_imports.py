"""Imports run one way, and importing the package is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fq_toolkit"
FILES = sorted(PACKAGE.rglob("*.py"))
PAPERS = {"fqgan", "optimus", "prevalent"}

# part -> the parts of the package that it may import besides itself
ALLOWED = {
    "cache": set(),  # where files live that can be made again: below everything
    "kernels": {"cache"},
    "layers": {"kernels"},
    "training": {"kernels", "layers", "environment"},
    **{paper: {"cache", "kernels", "layers", "training", "environment"} for paper in PAPERS},
    "environment": {"kernels"},
    "cli": {"kernels", "layers", "training", "environment", *PAPERS},
    "__main__": {"cli"},
    "__init__": {"layers"},
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


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def type_checking_lines(tree: ast.AST) -> set[int]:
    """Return the lines under `if TYPE_CHECKING:`, which never run."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                lines.update(range(child.lineno, (child.end_lineno or child.lineno) + 1))
    return lines


def imports(path: Path) -> list[tuple[str, int, bool]]:
    """Return (absolute module, line, runs when the file is imported) for every import of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            inside.update(child for child in ast.walk(node) if child is not node)
    found = []
    for node in ast.walk(tree):
        at_import = node not in inside
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno, at_import) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = module_name(path).split(".")
                drop = node.level - (path.name == "__init__.py")
                base = ".".join([*here[: len(here) - drop], *([base] if base else [])])
            found.append((base, node.lineno, at_import))
            found += [
                (f"{base}.{alias.name}", node.lineno, at_import)
                for alias in node.names
                if base == "fq_toolkit"
            ]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            if node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
                found.append((node.args[0].value, node.lineno, at_import))
    return found


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_run_one_way(path: Path) -> None:
    part = part_of(path)
    assert part in ALLOWED, f"{path}: a new part of the package; give it a place in ALLOWED"
    known = {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()} | {
        p.stem for p in PACKAGE.glob("*.py")
    }
    for module, line, _ in imports(path):
        pieces = module.split(".")
        if pieces[0] != "fq_toolkit" or len(pieces) < 2 or pieces[1] not in known:
            continue
        target = pieces[1]
        assert target == part or target in ALLOWED[part], (
            f"{path}:{line} imports {module}: {part} may import {sorted(ALLOWED[part]) or 'nothing else'}"
        )


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_heavy_modules_stay_with_their_owners(path: Path) -> None:
    typing_only = type_checking_lines(ast.parse(path.read_text(encoding="utf-8")))
    for module, line, at_import in imports(path):
        top = module.split(".")[0]
        assert top not in BANNED, f"{path}:{line} imports {module}, which must not be a dependency"
        if line in typing_only:
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
    typing_only = type_checking_lines(ast.parse(path.read_text(encoding="utf-8")))
    for module, line, at_import in imports(path):
        top = module.split(".")[0]
        if not at_import or line in typing_only or top in {"fq_toolkit", *CORE, *sys.stdlib_module_names}:
            continue
        if not (top == "triton" and path.name.endswith("_triton.py")):
            pytest.fail(f"{path}:{line} imports {module} at the top, which fq-toolkit alone does not install")


@pytest.mark.parametrize("root", ["tests", "benchmarks", "examples"])
def test_no_file_of_the_project_imports_torchvision(root: str) -> None:
    for path in sorted((ROOT / root).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        }
        names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not {name.split(".")[0] for name in names} & BANNED, path


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
