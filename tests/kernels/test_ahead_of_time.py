"""Every line of the launch table compiles for three generations of GPUs and fits their shared memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from fq_toolkit.kernels.launch import FAMILIES, LaunchConfig, all_configs, launch_config, shared_memory_limit

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]
NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64"}
HAS_FEATURES = ("lookup", "sums", "backward", "rescore")
SMALLEST_LIMIT = 99 * 1024  # devices of compute capability 8.6, 8.9 and 12.0 run the configurations of 8.0


class Job(NamedTuple):
    """One kernel to compile: what `aot_worker` needs to know."""

    op: str
    capability: tuple[int, int]
    dtype: torch.dtype
    config: LaunchConfig
    dim: int
    contiguous: str = "q"
    overrides: tuple[tuple[str, Any], ...] = ()

    def request(self) -> dict[str, Any]:
        config = self.config
        options: dict[str, Any] = {"num_warps": config.num_warps, "num_stages": config.num_stages}
        if self.op in ("rescore", "backward", "commit"):
            options["enable_fp_fusion"] = False
        wide = self.dtype == torch.float64
        blocks = {"BLOCK_N": config.block_n, "BLOCK_K": config.block_k, "BLOCK_D": config.block_d}
        output = {"WITH_OUTPUT": True, "FULL_STRENGTH": False}
        constants: dict[str, Any] = {
            "lookup": {"DIM": self.dim, **blocks, **output, "DOT": config.dot, "WIDE": wide}
            | {"EXACT": True, "HAS_MASK": True, "TICKETS": 512},
            "rescore": {**blocks, **output, "WIDE": wide},
            "sums": {"DIM": self.dim, **blocks, "CHUNK": 1024, "SAMPLES": 64, "SPAN": 16, "DOT": config.dot}
            | {"WITH_SUMS": True, "SPLIT": True, "EXACT_IN_TF32": self.dtype.itemsize == 2},
            "commit": {"DIM": self.dim, "BLOCK_K": config.block_k, "BLOCK_D": config.block_d}
            | {"SCAN": 1024, "DEBIAS": True},
            "backward": {"DIM": self.dim, "BLOCK_N": config.block_n, "BLOCK_D": config.block_d}
            | {"WIDE": wide, "HAS_GRAD": True},
        }[self.op]
        return {
            "op": self.op,
            "capability": self.capability[0] * 10 + self.capability[1],
            "dtype": NAMES[self.dtype],
            "contiguous": self.contiguous,
            "constants": constants | dict(self.overrides),
            "options": options,
        }


# What the launchers may ask for besides the constants of `Job.request`.
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "lookup": (
        {"EXACT": False, "HAS_MASK": False, "FULL_STRENGTH": True},
        {"WITH_OUTPUT": False, "HAS_MASK": False, "TICKETS": 0},
    ),
    "rescore": ({"FULL_STRENGTH": True}, {"WITH_OUTPUT": False}),
    "sums": ({"WITH_SUMS": False}, {"SAMPLES": 1, "SPAN": 1024}, {"SPLIT": False}),
    "commit": ({"DEBIAS": False},),
    "backward": ({"HAS_GRAD": False},),
}


def dims(config: LaunchConfig) -> tuple[int, int]:
    """A dimension that one channel tile holds, and one that takes several and leaves a remainder."""
    return config.block_d, 4 * config.block_d + 1


def table_jobs() -> list[Job]:
    """Every configuration, with dtypes, dimensions and memory formats in turn."""
    jobs: list[Job] = []
    seen = set()
    for op, capability, dtype, config in all_configs():
        if (op, capability, config) in seen:
            continue
        seen.add((op, capability, config))
        turn = len(seen)
        if op not in HAS_FEATURES:
            dtype = torch.float32
        elif dtype != torch.float64:
            dtype = (torch.float32, torch.float16, torch.bfloat16)[turn % 3]
        both = op == "lookup" and dtype != torch.float64
        for dim in dims(config) if both else dims(config)[turn % 2 :][:1]:
            jobs.append(Job(op, capability, dtype, config, dim, "qc"[turn % 2]))
    return jobs


def variant_jobs() -> list[Job]:
    """What the table leaves open, for one device: other constants, and sizes of 1, which are constants."""
    jobs: list[Job] = []
    for op, variants in VARIANTS.items():
        config = launch_config(op, 1 << 20, 1024, 256, torch.float32, (9, 0))
        for variant in variants:
            jobs.append(Job(op, (9, 0), torch.float32, config, 256, "q", tuple(variant.items())))
        jobs.append(Job(op, (9, 0), torch.bfloat16, config, 1, "ones"))
    return jobs


def every_job() -> list[Job]:
    """The cross product with dtypes, dimensions and memory formats."""
    return [
        Job(op, capability, dtype, config, dim, contiguous)
        for op, capability, dtype, config in all_configs()
        if op in HAS_FEATURES or dtype == torch.float32
        for dim in dims(config)
        for contiguous in ("qc" if op in HAS_FEATURES else "q")
    ]


def compile_all(jobs: list[Job], cache: Path) -> list[dict[str, Any]]:
    """Compile in two processes without the interpreter; results in the order of the jobs."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def run(part: list[Job]) -> list[dict[str, Any]]:
        worker = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("aot_worker.py"))],
            input=json.dumps([job.request() for job in part]),
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        assert worker.returncode == 0, worker.stderr[-4000:]
        return json.loads(worker.stdout)

    with ThreadPoolExecutor(2) as pool:
        even, odd = pool.map(run, (jobs[::2], jobs[1::2]))
    results: list[dict[str, Any]] = [{}] * len(jobs)
    results[::2], results[1::2] = even, odd
    return results


def check(job: Job, result: dict[str, Any]) -> None:
    limit = SMALLEST_LIMIT if job.capability == (8, 0) else shared_memory_limit(job.capability)
    assert result["binary"] > 0
    assert result["shared"] <= limit, f"{job} needs {result['shared']} of {limit} bytes of shared memory"
    assert result["float_atomics"] == 0, f"{job} would add in an order that varies"
    if job.op == "rescore":
        assert result["fused_float64"] == 0, f"{job} contracts the float64 distances"
    if job.op in ("lookup", "sums"):
        assert result["tensor_core"] > 0, f"{job} does not reach the tensor cores"
    if job.op == "lookup":
        assert result["accumulators"] == [], (
            f"{job} chains its partial products, which the certificate does not allow"
        )


def test_the_whole_table_compiles(tmp_path: Path) -> None:
    jobs = table_jobs()
    assert {job.capability for job in jobs} == set(FAMILIES)
    for job, result in zip(jobs, compile_all(jobs, tmp_path), strict=True):
        check(job, result)


def test_variants_compile(tmp_path: Path) -> None:
    jobs = variant_jobs()
    for job, result in zip(jobs, compile_all(jobs, tmp_path), strict=True):
        if dict(job.overrides).get("WITH_SUMS", True):
            check(job, result)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_dtype_dimension_and_layout_compiles(tmp_path: Path) -> None:
    jobs = every_job()
    for job, result in zip(jobs, compile_all(jobs, tmp_path), strict=True):
        check(job, result)
