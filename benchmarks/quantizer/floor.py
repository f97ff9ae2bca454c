"""The floor: what the hardware needs at least, whoever writes the code.

CPU (and any GPU without an entry below): the fastest fp32 product of N x D by D x K that torch can do in this
process, measured in the same rounds as the contenders, plus the passes over N x D that the op must make at
measured bandwidth.

GPUs with known limits: the largest of matrix arithmetic ``2 N K D / P_mma``, score arithmetic ``3.5 N K /
P_fp32``, memory traffic and level-2 traffic, plus one more pass over the features for the dictionary's
update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.contender import Contender, Task
from benchmarks.quantizer.problem import FeatureProblem
from benchmarks.timing import cpu_sample, cuda_sample

GEMM = "fp32 GEMM"
PLAIN_GEMM = "torch.mm"
_CHUNKS = (None, 512, 2048, 8192)
_FP32_ERROR = 2e-6  # of |x| |c|; tf32 and bf16 products err more than ten times as much


@contextmanager
def onednn_matmul() -> Iterator[None]:
    """Let torch send fp32 products to oneDNN, which it does when reduced precision would be accepted."""
    setting: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # made at run time
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


def _product(rows: Tensor, codes: Tensor, chunk: int | None, onednn: bool) -> Callable[[object], Tensor]:
    """Compute ``rows @ codes`` into an existing array; in chunks, each overwrites the same small array."""
    total = rows.shape[0]
    step = min(chunk or total, total)
    out = rows.new_empty(step, codes.shape[1])

    def run(_: object) -> Tensor:
        for start in range(0, total, step):
            part = rows[start : start + step]
            torch.mm(part, codes, out=out[: part.shape[0]])
        return out

    def run_onednn(_: object) -> Tensor:
        with onednn_matmul():
            return run(None)

    return run_onednn if onednn else run


def _is_fp32(run: Callable[[object], Tensor], rows: Tensor, codes: Tensor, step: int) -> bool:
    """Return whether the product has fp32 accuracy: a faster format is not the floor of an fp32 op."""
    got = run(None)
    last = rows[(rows.shape[0] - 1) // step * step :][:64]
    exact = last.double() @ codes.double()
    scale = last.double().norm(dim=1, keepdim=True) * codes.double().norm(dim=0)
    return bool(((got[: last.shape[0]].double() - exact).abs() <= _FP32_ERROR * scale).all())


@dataclass(frozen=True)
class GemmVariant:
    """One way to compute the product, and how to say which."""

    label: str
    task: Task


def gemm_variants(problem: FeatureProblem, keep: int = 2, budget_bytes: int = 12 << 30) -> list[GemmVariant]:
    """Return the fastest few ways that have fp32 accuracy, by a quick trial; the timed rounds decide."""
    rows = problem.rows.float()
    codes = problem.codebook.t().contiguous()
    sample = cuda_sample if problem.device == "cuda" else cpu_sample
    onednn_choices = (
        (False, True) if problem.device == "cpu" and torch.backends.mkldnn.is_available() else (False,)
    )
    found: list[tuple[float, GemmVariant]] = []
    for chunk in _CHUNKS:
        step = min(chunk or rows.shape[0], rows.shape[0])
        if (chunk and chunk >= rows.shape[0]) or 4 * step * codes.shape[1] > budget_bytes:
            continue
        for onednn in onednn_choices:
            run = _product(rows, codes, chunk, onednn)
            if not _is_fp32(run, rows, codes, step):
                continue
            size = f"{chunk} rows at a time" if chunk else "in one piece"
            variant = GemmVariant(f"{'oneDNN' if onednn else 'default'} path, {size}", Task(run))
            found.append((min(sample(variant.task, 1) for _ in range(2)), variant))
    found.sort(key=lambda entry: entry[0])
    return [variant for _, variant in found[:keep]]


def plain_gemm() -> Contender:
    """Return ``torch.mm`` as a user would write it, with the allocation of its N x K result."""

    def build(problem: FeatureProblem) -> Task:
        rows, codes = problem.rows.float(), problem.codebook.t()
        return Task(lambda _: torch.mm(rows, codes))

    return Contender(PLAIN_GEMM, build, kind="floor", score_arrays=1)


def copy_task(problem: FeatureProblem) -> Task:
    """Return a task of one read and one write of N x D, whose time gives the bandwidth."""
    source = problem.rows
    target = torch.empty_like(source)
    return Task(lambda _: target.copy_(source))


@dataclass(frozen=True)
class Work:
    """What an op cannot avoid.

    Args:
        gemms: products of N x D by D x K.
        feature_passes: reads and writes of N x D beyond the product's own read.
        code_passes: reads and writes of K x D.
        update: whether the dictionary follows (one of the feature passes on a GPU).
    """

    gemms: int = 1
    feature_passes: int = 0
    code_passes: int = 0
    update: bool = False


def measured_floor(problem: FeatureProblem, work: Work, gemm_ms: float, copy_ms: float) -> float:
    """Return milliseconds: the products at their measured time, the passes at the measured bandwidth."""
    pass_ms = copy_ms / 2
    shape = problem.shape
    return work.gemms * gemm_ms + pass_ms * (
        work.feature_passes + work.code_passes * shape.num_codes / shape.rows
    )


@dataclass(frozen=True)
class Limits:
    """Peak dense rates of a GPU from the data sheet; level-2 bandwidth from published measurements."""

    bf16_flops: float
    tf32_flops: float
    fp32_flops: float
    bandwidth: float
    level2_bandwidth: float


#: By a part of the device name.
GPU_LIMITS = {
    "H100": Limits(989e12, 494.5e12, 66.9e12, 3.35e12, 5.5e12),
    "H200": Limits(989e12, 494.5e12, 66.9e12, 4.8e12, 5.5e12),
}
_BLOCK_ROWS = 128  # rows of a tile: the codebook is read from level 2 once for each


def limits_for(device_name: str) -> Limits | None:
    """Return the limits of a GPU by its name, or None when they are not in the table."""
    return next((limits for part, limits in GPU_LIMITS.items() if part in device_name), None)


def model_floor(problem: FeatureProblem, work: Work, limits: Limits) -> float:
    """Return milliseconds by the limits model."""
    n, d, k = problem.shape.rows, problem.shape.dim, problem.shape.num_codes
    half = problem.dtype in (torch.bfloat16, torch.float16)
    size = problem.feature_bytes / (n * d)
    arithmetic = work.gemms * 2 * n * k * d / (limits.bf16_flops if half else limits.tf32_flops)
    scores = work.gemms * 3.5 * n * k / limits.fp32_flops
    passes = work.gemms + work.feature_passes - work.update
    traffic = (n * d * size * passes + 4 * n + 4 * k * d * (work.gemms + work.code_passes)) / limits.bandwidth
    level2 = work.gemms * n * k * d * size / (_BLOCK_ROWS * limits.level2_bandwidth)
    update = n * d * size / limits.bandwidth if work.update else 0.0
    return 1e3 * (max(arithmetic, scores, traffic, level2) + update)
