"""The imports of our own source, read without running it: what each file names, circles, sub-packages."""

import ast
import functools
import io
import tokenize
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("fq_toolkit", "benchmarks")


class Import(NamedTuple):
    """One module that a file names, and when that runs."""

    module: str
    line: int
    at_import: bool  # outside every function, so while the file itself is imported
    typing_only: bool  # under `if TYPE_CHECKING:`, so never


def module_name(path: Path) -> str:
    """Return the dotted name of a file below the project's folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def source_files(*packages: str) -> list[Path]:
    """Return every Python file of some folders of the project, sorted."""
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


@functools.cache
def our_modules() -> frozenset[str]:
    """Return the names of all modules of our packages."""
    return frozenset(map(module_name, source_files(*PACKAGES)))


@functools.cache
def parsed(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def type_checking_lines(path: Path) -> frozenset[int]:
    """Return the lines under `if TYPE_CHECKING:`, which never run."""
    lines: set[int] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                lines.update(range(child.lineno, (child.end_lineno or child.lineno) + 1))
    return frozenset(lines)


@functools.cache
def imports(path: Path) -> tuple[Import, ...]:
    """Return every import of a file with its absolute name, `import_module("literal")` among them."""
    tree, never = parsed(path), type_checking_lines(path)
    inside: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            inside.update(child for child in ast.walk(node) if child is not node)
    found = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(path, node)
            ours = {f"{base}.{alias.name}" for alias in node.names}
            # `from package import module` runs the module; any other name lives in `base` itself
            names = [base, *sorted(ours & our_modules())] if ours - our_modules() else sorted(ours)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            first = node.args[0] if node.args else None
            names = [first.value] if isinstance(first, ast.Constant) and isinstance(first.value, str) else []
        if names:
            found += [Import(name, node.lineno, node not in inside, node.lineno in never) for name in names]
    return tuple(found)


def _absolute(path: Path, node: ast.ImportFrom) -> str:
    base = node.module or ""
    if node.level:
        here = module_name(path).split(".")
        drop = node.level - (path.name == "__init__.py")
        base = ".".join([*here[: len(here) - drop], *([base] if base else [])])
    return base


@functools.cache
def lazy_table(path: Path) -> dict[str, str]:
    """Return the `_HOME` table of an `__init__.py`: public name -> the module it is loaded from."""
    for node in parsed(path).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOME":
            return dict(ast.literal_eval(node.value))
    return {}


def uses(path: Path) -> set[str]:
    """Return our modules that a file uses at any time: lazily and through tables of module names too."""
    used = {entry.module for entry in imports(path) if not entry.typing_only}
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and node.lineno not in type_checking_lines(path):
            # `from fq_toolkit.fqgan import train` reaches the module that defines the name
            package = ROOT / Path(*_absolute(path, node).split(".")) / "__init__.py"
            table = lazy_table(package) if package.exists() else {}
            used |= {table[alias.name] for alias in node.names if alias.name in table}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not lazy_table(path):
            # a table such as {"r2r": "fq_toolkit.prevalent.tasks.r2r.commands"}, for `import_module`
            used |= {node.value} if "." in node.value else set()
    return used & our_modules() - {module_name(path)}


def module_graph() -> dict[str, set[str]]:
    """Return module -> modules it uses."""
    return {module_name(path): uses(path) for path in source_files(*PACKAGES)}


def child_graph(package: str, graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the graph between what lies directly in a package's folder, its modules and its sub-packages."""

    def child(module: str) -> str:
        return module.removeprefix(package).lstrip(".").split(".")[0] or "__init__"

    edges: dict[str, set[str]] = defaultdict(set)
    for module, used in graph.items():
        if f"{module}.".startswith(f"{package}."):
            edges[child(module)] |= {child(other) for other in used if f"{other}.".startswith(f"{package}.")}
    return {name: others - {name} for name, others in edges.items()}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of names that reach each other (Tarjan's strongly connected components above one)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in sorted(graph.get(name, ())):
            if other not in order:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], order[other])
        if low[name] == order[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in sorted(graph):
        if name not in order:
            visit(name)
    return sorted(found)


def comment_lines(path: Path) -> set[int]:
    """Return the lines that hold a comment."""
    readline = io.StringIO(path.read_text(encoding="utf-8")).readline
    return {token.start[0] for token in tokenize.generate_tokens(readline) if token.type == tokenize.COMMENT}


def silent_lazy_imports(path: Path) -> list[int]:
    """Return the lines of imports of our own inside functions that no comment explains.

    One comment, on a line of the import or above it, speaks for all imports that follow each other.
    """
    lazy = {
        entry.line
        for entry in imports(path)
        if not entry.at_import and not entry.typing_only and entry.module.split(".")[0] in PACKAGES
    }
    statements = sorted(
        (node for node in ast.walk(parsed(path)) if isinstance(node, ast.stmt) and node.lineno in lazy),
        key=lambda node: node.lineno,
    )
    commented, explained_to, silent = comment_lines(path), -1, []
    for node in statements:
        end = node.end_lineno or node.lineno
        here = commented & set(range(node.lineno - 1, end + 1))
        if here or node.lineno == explained_to + 1:
            explained_to = end
        else:
            silent.append(node.lineno)
    return silent


def large_folders(roots: Iterable[str], most: int) -> dict[str, int]:
    """Return folder -> number of Python files directly in it, for those with more than `most`."""
    counts: dict[str, int] = defaultdict(int)
    for path in source_files(*roots):
        counts[path.parent.relative_to(ROOT).as_posix()] += 1
    return {folder: count for folder, count in sorted(counts.items()) if count > most}
