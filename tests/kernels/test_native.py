"""How the compiled CPU kernels come to be, and what happens where they cannot."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fq_toolkit.kernels import native, native_build

needs_native = pytest.mark.skipif(
    native.problem() is not None, reason=f"the native backend {native.problem()}"
)

PROGRAM = """
import torch
from fq_toolkit.kernels import native, ops
print(native.problem())
x, codebook = torch.randn(2, 3, 4, 4), torch.randn(5, 3)
counts = ops.quantize_forward(x, codebook, codebook.mean(0), None, 1.0, True, True, True)[3]
print(ops.select_backend(x), counts.sum().item())
"""


def run_program(**environment: str) -> list[str]:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.splitlines()


def test_without_a_compiler_the_reference_takes_over(tmp_path):
    problem, result = run_program(PATH=str(tmp_path), CXX="", FQ_TOOLKIT_CACHE=str(tmp_path))
    assert "no C++ compiler was found" in problem
    assert result == "reference 32"


def test_a_broken_compiler_is_reported(tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho nonsense >&2\nexit 1\n")
    compiler.chmod(0o755)
    problem, result = run_program(CXX=str(compiler), FQ_TOOLKIT_CACHE=str(tmp_path / "cache"))
    assert "could not compile the kernels" in problem
    assert "nonsense" in problem
    assert result == "reference 32"


@needs_native
def test_a_damaged_library_is_compiled_again(tmp_path):
    intact = Path(native.library()._name)
    damaged = tmp_path / intact.name
    damaged.write_bytes(intact.read_bytes()[:1000])
    damaged.with_suffix(".sha256").write_text(intact.with_suffix(".sha256").read_text())
    assert run_program(FQ_TOOLKIT_CACHE=str(tmp_path)) == ["None", "native 32"]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".sha256", ".so"]
    assert damaged.stat().st_size > 1000


def copying(monkeypatch) -> list[Path]:
    """Let compiling be a copy of the library that is there, which takes no time; return the folders."""
    intact, folders = Path(native.library()._name), []

    def copy(compiler, feature, target):
        folders.append(target.parent)
        part = target.with_suffix(".part")
        part.write_bytes(intact.read_bytes())
        part.replace(target)
        target.with_suffix(".sha256").write_text(hashlib.sha256(intact.read_bytes()).hexdigest())

    monkeypatch.setattr(native_build, "_compile", copy)
    return folders


@needs_native
@pytest.mark.parametrize("junk", ["text", "truncated", "another library"])
def test_a_junk_library_with_a_matching_checksum_is_compiled_again(tmp_path, monkeypatch, junk):
    intact = Path(native.library()._name)
    folders = copying(monkeypatch)
    whole = intact.read_bytes()
    content = {"text": b"junk", "truncated": whole[: len(whole) // 2]}.get(junk)
    if content is None:
        source, other = tmp_path / "other.cpp", tmp_path / "other.so"
        source.write_text('extern "C" int other() { return 0; }')
        subprocess.run([native_build.find_compiler(), "-shared", "-fPIC", source, "-o", other], check=True)
        content = other.read_bytes()
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setenv("FQ_TOOLKIT_CACHE", str(cache))
    damaged = cache / intact.name
    damaged.write_bytes(content)
    damaged.with_suffix(".sha256").write_text(hashlib.sha256(content).hexdigest())
    for _ in range(2):
        assert Path(native_build.load("float")._name) == damaged
    assert folders == [cache]
    assert damaged.read_bytes() == whole


def compiler_that(folder: Path, script: str) -> str:
    folder.mkdir(exist_ok=True)
    compiler = folder / "c++"
    compiler.write_text("#!/bin/sh\n" + script)
    compiler.chmod(0o755)
    return str(compiler)


def test_a_compiler_that_hangs_is_given_up_with_its_children(tmp_path, monkeypatch):
    """The shell's child outlives the shell and holds its output open, as the stages of a compiler do."""
    monkeypatch.setattr(native_build, "_BRIEF", 0.5)
    monkeypatch.setenv("FQ_TOOLKIT_CACHE", str(tmp_path / "cache"))
    for script in ("sleep 60; true", 'test "$1" = --version && exit 0; sleep 60; true'):
        monkeypatch.setenv("CXX", compiler_that(tmp_path / "bin", script))
        before = time.monotonic()
        with pytest.raises(native_build.BuildError, match="did not end within"):
            native_build.load("float")
        assert time.monotonic() - before < 10


def test_a_compiler_may_say_anything(tmp_path, monkeypatch):
    monkeypatch.setenv("FQ_TOOLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", compiler_that(tmp_path / "bin", "printf '\\377\\200 no\\n'; exit 1"))
    with pytest.raises(native_build.BuildError, match="could not compile"):
        native_build.load("float")


def test_a_cache_that_cannot_execute_is_found_out_before_compiling(tmp_path, monkeypatch):
    """Libraries go among the temporary files then; where those cannot execute either, nothing is compiled."""
    real = native_build.ctypes.CDLL

    def mapped(name, *rest):
        if any(str(folder) in name for folder in refusing):
            raise OSError("failed to map segment from shared object")
        return real(name, *rest)

    if native.problem() is not None:
        pytest.skip("needs a compiler")
    compiled = copying(monkeypatch)
    noexec, temporary = tmp_path / "cache", tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("FQ_TOOLKIT_CACHE", str(noexec))
    monkeypatch.setattr(native_build, "temporary_cache", lambda: temporary)
    monkeypatch.setattr(native_build.ctypes, "CDLL", mapped)

    refusing = [noexec]
    for _ in range(2):
        assert Path(native_build.load("float")._name).parent == temporary
    assert compiled == [temporary]
    refusing.append(temporary)
    with pytest.raises(native_build.BuildError, match="cannot be written or executed"):
        native_build.load("float")
    assert compiled == [temporary]


@needs_native
def test_extra_memory_does_not_grow_with_rows_times_codes():
    """A lookup whose scores would fill 2 GiB raises the peak of the process by less than 16 MiB."""
    program = """
import torch
from pathlib import Path
from fq_toolkit.kernels import native, native_build
native.problem()
x, codebook = torch.randn(1 << 17, 4, 1, 1), torch.randn(1 << 12, 4)
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
native.quantize_forward(x[:64], codebook, torch.zeros(4), None, 1.0, True, True, True)
before = peak()
native.quantize_forward(x, codebook, torch.zeros(4), None, 1.0, True, True, True)
print(peak() - before)
"""
    if not os.path.exists("/proc/self/status"):
        pytest.skip("needs /proc")
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 16 * 1024


@needs_native
def test_half_precision_rounds_as_torch_does():
    """Every bfloat16 and float16 value survives, and blends round to nearest, ties to even."""
    for dtype in (torch.bfloat16, torch.float16):
        x = torch.arange(-32768, 32768, dtype=torch.int16).view(dtype).view(-1, 1, 1, 1)
        finite = torch.isfinite(x.flatten())
        out, indices, *_ = native.quantize_forward(
            x, torch.ones(1, 1), torch.zeros(1), None, 0.5, True, True, True
        )
        expected = torch.where(finite, (x.float() + 0.5 * (1 - x.float())).to(dtype).flatten(), x.flatten())
        torch.testing.assert_close(out.flatten(), expected, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(indices >= 0, finite)
