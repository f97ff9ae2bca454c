"""What README.md and docs/ say is true: blocks run, shapes are as stated, commands and messages exist."""

import ast
import importlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fq_toolkit import FeatureQuantizer

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SHAPE = re.compile(r"#\s*(\((?:\d+(?:, \d+)*,?)?\))(?:$|[,: ])")


def blocks(path: Path, language: str) -> list[str]:
    """Return the fenced blocks of one language."""
    return re.findall(
        rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def run_and_check_shapes(source: str, scope: dict[str, Any]) -> int:
    """Run a block statement by statement; where a line ends in `# (2, 3)`, its value must have that shape."""
    lines, checked = source.splitlines(), 0

    def check(node: ast.stmt) -> int:
        stated = SHAPE.search(lines[(node.end_lineno or node.lineno) - 1])
        if stated is None:
            return 0
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "value", None)
        assert isinstance(target, ast.expr), f"cannot see what has the shape in: {ast.unparse(node)}"
        value = eval(compile(ast.Expression(readable(target)), "README", "eval"), scope)
        assert tuple(value.shape) == ast.literal_eval(stated[1]), ast.unparse(node)
        return 1

    for node in ast.parse(source).body:
        exec(compile(ast.Module([node], type_ignores=[]), "README", "exec"), scope)
        simple = [node] if isinstance(node, (ast.Assign, ast.Expr)) else getattr(node, "body", [])
        checked += sum(check(child) for child in simple if isinstance(child, (ast.Assign, ast.Expr)))
    return checked


def readable(target: ast.expr) -> ast.expr:
    """Turn an assignment target into an expression that reads it."""
    for node in ast.walk(target):
        if hasattr(node, "ctx"):
            node.ctx = ast.Load()
    return target


CASES = [
    pytest.param(page, index, id=f"{page.name}-{index}")
    for page in PAGES
    for index in range(len(blocks(page, "python")))
]


@pytest.mark.parametrize(("page", "index"), CASES)
def test_python_block_runs_and_shapes_are_as_stated(
    page: Path,
    index: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    source = blocks(page, "python")[index]
    checked = run_and_check_shapes(source, {"__name__": "readme"})
    assert checked == len(SHAPE.findall("\n".join(f"{line} " for line in source.splitlines())))


def test_the_diff_turns_one_working_program_into_another() -> None:
    (diff,) = blocks(README, "diff")
    sides = {
        sign: "\n".join(line[2:] for line in diff.splitlines() if line[:1] in {" ", "", sign})
        for sign in "-+"
    }
    for sign, source in sides.items():
        leaf = torch.randn(4, 3, 32, 32, requires_grad=True)
        scope: dict[str, Any] = {
            "real": torch.randn(4, 3, 32, 32),
            "fake": leaf * 1,
            "hinge_d": lambda r, f: nn.functional.relu(1 - r).mean() + nn.functional.relu(1 + f).mean(),
        }
        exec(compile(source, "README", "exec"), scope)
        scope["d_loss"].backward()
        assert leaf.grad is None, sign
        scope["g_loss"].backward()
        assert torch.isfinite(leaf.grad).all(), sign
        quantizers = [layer for layer in scope["D"] if isinstance(layer, FeatureQuantizer)]
        assert len(quantizers) == (sign == "+")
    assert any(line.startswith("+") and "FeatureQuantizer(" in line for line in diff.splitlines())


def test_the_readme_is_short() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    fenced = re.findall(r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert [language for language, _ in fenced].count("python") == 4
    for language, block in fenced:
        assert len(block.splitlines()) <= 12, f"{language}: {block}"


def test_the_expected_figures_stand_among_the_results() -> None:
    """Each number of "What to expect" that has a decimal point is a cell of the results page."""
    readme = README.read_text(encoding="utf-8")
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    expected = readme.split("## What to expect\n", 1)[1].split("\n## ", 1)[0]
    lines = re.findall(r"^- \*\*.*?(?=^- \*\*|\Z)", expected, re.DOTALL | re.MULTILINE)
    assert [re.match(r"- \*\*(.+?)\*\*", line)[1] for line in lines] == ["FQ-GAN", "Optimus", "PREVALENT"]  # type: ignore[index]
    cells = set(re.findall(r"(?<=\| )-?\d+\.\d+", results))
    for line in lines:
        assert "(docs/results.md#" in line
        assert "`python -m benchmarks." in line
        figures = re.findall(r"(?<![\d.])\d+\.\d+", line)
        assert figures
        assert set(figures) <= cells, line


def test_there_are_two_commands_of_one_line_each() -> None:
    commands = re.findall(r"^python3 -m venv .*$", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands) == 2
    assert commands[0].endswith(" && .venv/bin/fq-toolkit train fqgan --fq regularize")
    assert " && .venv/bin/pytest " in commands[1]
    for command in commands:
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e ")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_install_line_is_constrained(page: Path) -> None:
    for line in "\n".join(blocks(page, "bash")).splitlines():
        if "pip install" in line:
            assert "-c constraints.txt" in line, line


def help_of(*command: str) -> str:
    child = subprocess.run(
        [sys.executable, "-m", *command, "--help"], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert child.returncode == 0, child.stderr
    return child.stdout


def test_commands_that_the_pages_name_exist() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    ours = set(re.findall(r"fq-toolkit (?!-)([a-z]+)(?=[ `\n])", text)) - {"alone"}
    benchmarks = set(re.findall(r"python -m benchmarks ([a-z]+)", text))
    modules = set(re.findall(r"python -m (benchmarks\.[a-z_]+)", text))
    assert {"train", "env"} <= ours
    toolkit_help, benchmark_help = help_of("fq_toolkit"), help_of("benchmarks")
    for name in ours:
        assert re.search(rf"\b{name}\b", toolkit_help), f"fq-toolkit {name}"
    for name in benchmarks:
        assert re.search(rf"\b{name}\b", benchmark_help), f"python -m benchmarks {name}"
    for name in modules:
        assert importlib.util.find_spec(name), name


def anchors(path: Path) -> set[str]:
    """Return what a link may name behind a `#`: the headings, as code hosts and mkdocs spell them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        path = page.parent / target if target else page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path), f"{target}#{anchor}"


def test_names_that_the_reference_shows_are_where_it_says() -> None:
    """A module that moves would otherwise break only the build of the documentation."""
    for page in PAGES:
        for name in re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            module, _, attribute = name.rpartition(".")
            assert hasattr(importlib.import_module(module), attribute), f"{page.name}: {name}"


def test_the_pages_are_in_the_navigation() -> None:
    named = re.findall(r"^ +- .+: (\w+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_files_that_the_pages_name_exist() -> None:
    named = set()
    for page in PAGES:
        named |= set(
            re.findall(r"`((?:fq_toolkit|benchmarks|tests|docs|examples)/[\w./]*)`", page.read_text("utf-8"))
        )
    named = {name for name in named if "rotate" not in name}  # the made-up kernel of CONTRIBUTING.md
    assert named
    for name in named:
        assert (ROOT / name).exists(), name


def test_quoted_messages_are_those_of_the_code() -> None:
    """Each troubleshooting entry is headed by a fragment of a message; ours must stand in the source."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    entries = re.findall(r"^\*\*`(.+?)`\*\*(.*)$", page, re.MULTILINE)
    assert len(entries) >= 6
    source = []
    for path in sorted((ROOT / "fq_toolkit").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "\0" for v in node.values]
                source.append("".join(str(part) for part in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                source.append(node.value)
    for fragment, rest in entries:
        if rest.startswith((" (torch)", " (pip)")):  # not our words
            continue
        pieces = [piece.strip() for piece in fragment.split("...") if piece.strip()]
        assert any(all(piece in text for piece in pieces) for text in source), fragment


def test_the_picture_is_there_with_a_caption_from_its_record() -> None:
    spec = importlib.util.spec_from_file_location("picture", ROOT / "docs" / "picture.py")
    assert spec is not None
    assert spec.loader is not None
    picture = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(picture)
    record = json.loads(picture.RECORD.read_text())
    assert picture.IMAGE.read_bytes().startswith(b"\x89PNG")
    assert f" && .venv/bin/{record['command']}\n" in README.read_text(encoding="utf-8")
    assert picture.caption(record) in README.read_text(encoding="utf-8")
    assert len(picture.caption(record).splitlines()) == 3, "the picture, and a caption of one line"


def test_the_tables_are_those_of_the_results_files() -> None:
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks", "table", "--check"], capture_output=True, text=True, cwd=ROOT
    )
    assert child.returncode == 0, child.stdout + child.stderr


def test_the_api_page_shows_every_public_name() -> None:
    import fq_toolkit

    shown = re.findall(
        r"^::: fq_toolkit\.(\w+)$", (ROOT / "docs" / "api.md").read_text("utf-8"), re.MULTILINE
    )
    assert sorted(shown) == sorted(set(fq_toolkit.__all__) - {"__version__"})
