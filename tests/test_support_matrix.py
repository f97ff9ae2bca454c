"""Every "yes" in the matrix of docs/support.md is a run of that backend, dtype and layout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fq_toolkit.kernels.ops import interpreter_problem

ROOT = Path(__file__).resolve().parents[1]
DTYPES = ["float16", "bfloat16", "float32", "float64"]
# layout -> features with 6 channels, and the axis they are on
LAYOUTS = {
    "(B, C)": lambda: (torch.randn(20, 6), 1),
    "(B, L, C)": lambda: (torch.randn(3, 7, 6), 2),
    "NCHW": lambda: (torch.randn(2, 6, 4, 3), 1),
    "channels_last": lambda: (torch.randn(2, 6, 4, 3).contiguous(memory_format=torch.channels_last), 1),
    "NCDHW": lambda: (torch.randn(2, 6, 2, 3, 2), 1),
    "strided views": lambda: (torch.randn(2, 12, 4, 6)[:, ::2, :, 1::2], 1),
}


def matrix() -> dict[str, list[tuple[str, bool]]]:
    """Read the table: backend -> (column, claimed)."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (ROOT / "docs" / "support.md").read_text(encoding="utf-8").splitlines()
        if line.startswith(("| backend |", "| reference |", "| native |", "| triton |"))
    ]
    header, *body = rows
    return {
        row[0]: [(name, cell == "yes") for name, cell in zip(header, row, strict=True)][2:] for row in body
    }


def run_cells(columns: list[str]) -> None:
    """Run a training step per dtype and layout on the backend that the environment names."""
    from fq_toolkit import FeatureQuantizer
    from fq_toolkit.kernels import ops

    for dtype in (name for name in DTYPES if name in columns):
        for layout in (name for name in LAYOUTS if name in columns):
            torch.manual_seed(0)
            x, axis = LAYOUTS[layout]()
            x = (x * 2).to(getattr(torch, dtype)).requires_grad_()
            if ops.select_backend(x) != os.environ["FQ_TOOLKIT_BACKEND"]:
                raise SystemExit(f"ran on {ops.select_backend(x)}")
            layer = FeatureQuantizer(6, 5, init="normal")
            codebook = layer.codebook.double().clone()
            out = layer.quantize(x)
            rows = x.detach().double().movedim(axis, -1)
            nearest = (rows[..., None, :] - codebook).square().sum(-1).argmin(-1)
            if not torch.equal(out.indices.long(), nearest):
                raise SystemExit(f"{dtype} {layout}: {int((out.indices != nearest).sum())} wrong indices")
            expected = codebook[nearest].movedim(-1, axis).to(x.dtype)
            if out.quantized.dtype != x.dtype or not torch.equal(out.quantized, expected):
                raise SystemExit(f"{dtype} {layout}: wrong output")
            (out.quantized.sum() + out.loss.sum()).backward()
            if x.grad is None or not torch.isfinite(x.grad).all():
                raise SystemExit(f"{dtype} {layout}: no gradient")


def test_the_matrix_names_what_is_tested() -> None:
    table = matrix()
    assert list(table) == ["reference", "native", "triton"]
    for cells in table.values():
        assert [name for name, _ in cells] == [*DTYPES, *LAYOUTS]


@pytest.mark.parametrize("backend", ["reference", "native", "triton"])
def test_backend_does_what_the_matrix_claims(backend: str) -> None:
    if backend == "triton":
        if problem := interpreter_problem():
            pytest.skip(problem)
    claimed = [name for name, yes in matrix()[backend] if yes]
    child = subprocess.run(
        [sys.executable, __file__, *claimed],
        capture_output=True, text=True, cwd=ROOT, timeout=600,
        env={**os.environ, "FQ_TOOLKIT_BACKEND": backend, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert child.returncode == 0, child.stdout + child.stderr


if __name__ == "__main__":
    run_cells(sys.argv[1:])
