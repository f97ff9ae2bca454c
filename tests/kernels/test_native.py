"""How the compiled CPU kernels come to be, and what happens where they cannot."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fq_toolkit.kernels import native

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


@needs_native
def test_extra_memory_does_not_grow_with_rows_times_codes():
    """A lookup whose scores would fill 2 GiB raises the peak of the process by less than 16 MiB."""
    program = """
import torch
from pathlib import Path
from fq_toolkit.kernels import native
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
