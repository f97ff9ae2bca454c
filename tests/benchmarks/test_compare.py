"""Comparing commits: both sides in turns, each measured with its own package."""

import subprocess

import pytest

from benchmarks import compare
from benchmarks.machine import ROOT
from tests.import_graph import imports, module_name, source_files

#: What every commit offers, wherever its private modules lie.
PUBLIC = {"fq_toolkit", "fq_toolkit.kernels", "fq_toolkit.kernels.ops", "fq_toolkit.prevalent"}


@pytest.fixture
def here_and_there(monkeypatch):
    """Replace the measuring processes by numbers; returns the log of the trees that were measured."""
    if subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True).returncode:
        pytest.skip("not a git checkout")
    log = []

    def sample(package_root, harness_root, case, device, quick):
        assert (package_root / "fq_toolkit" / "__init__.py").exists()
        assert (harness_root / "benchmarks" / "__main__.py").exists()
        assert not (harness_root / "fq_toolkit").exists()
        log.append(package_root == ROOT)
        return {"shape / ours": 2.0} | ({"shape / new": 3.0} if package_root == ROOT else {})

    monkeypatch.setattr(compare, "sample", sample)
    return log


def test_the_sides_take_turns(here_and_there):
    lines = compare.compare("HEAD", "lookup", rounds=3)
    assert here_and_there == [False, True, True, False, False, True]
    assert lines == [("shape / ours", "2.000", "2.000", "1.00x"), ("shape / new", "absent", "3.000", "")]


def test_the_worktree_is_removed(here_and_there):
    with compare.worktree("HEAD") as tree:
        assert (tree / "fq_toolkit").is_dir()
    assert not tree.exists()
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "worktree", "list"], capture_output=True, text=True
    ).stdout
    assert str(tree) not in listed


def test_what_measures_an_older_commit_needs_only_its_public_names():
    files = {module_name(path): path for path in source_files("benchmarks")}
    seen, left = set(), {"benchmarks.__main__"}
    while left:
        seen.add(name := left.pop())
        used = {entry.module for entry in imports(files[name]) if entry.at_import}
        left |= (used & files.keys()) - seen
        ours = {module for module in used if module.split(".")[0] == "fq_toolkit"}
        assert ours <= PUBLIC, f"{name} imports {ours - PUBLIC} when it is loaded"
    assert "benchmarks.navigation.peers" in seen
