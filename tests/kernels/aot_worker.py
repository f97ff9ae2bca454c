"""Compile Triton kernels for devices that are not there, in a process of its own that must not interpret.

Reads a JSON list of jobs from standard input and writes a JSON list of results to standard output; see `Job`
in `test_ahead_of_time.py` for their meaning.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fq_toolkit.kernels import backward_triton, commit_triton, lookup_triton, segment_sums_triton

KERNELS = {
    "lookup": lookup_triton._coarse_kernel,
    "rescore": lookup_triton._rescore_kernel,
    "sums": segment_sums_triton._segment_kernel,
    "commit": commit_triton._commit_kernel,
    "backward": backward_triton._backward_kernel,
}
FEATURES = {
    "lookup": ("x", "out"),
    "rescore": ("x", "out"),
    "sums": ("x",),
    "backward": ("x", "grad_out", "gradient"),
}
POINTERS = {
    "i1": {"mask"},
    "i32": {"indices", "positions", "tickets", "ticket"},
    "i64": {"counts", "partial_counts", "num_updates"},
    "fp32": {
        *("codebook", "center", "row_error", "sums", "sq_error", "grad_error", "partial_sums"),
        *("ema_counts", "ema_sums", "new_counts"),
    },
}
FLOATS = {
    *("alpha", "beta", "gamma", "tiny", "relative", "strength", "strength_low"),
    *("decay", "rest", "log_decay", "eps", "slots_eps"),
}
# Run-time numbers that vary with the batch and that the launchers keep from being specialized.
UNSPECIALIZED = {"num_rows", "rows_per_split", "batch", "splits"}


def compile_job(job: dict[str, Any]) -> dict[str, Any]:
    """Compile one kernel as its launcher would for aligned tensors."""
    kernel = KERNELS[job["op"]]
    constants = dict(job["constants"])
    # An integer that is 1 becomes a constant: the stride of the contiguous axis, or all sizes and strides.
    pattern = r"(x|out|g|d)_[bcpq]|size_[pq]|num_codes|dim|\w+_tiles|\w*programs|rows_per_sample"
    if job["contiguous"] != "ones":
        pattern = rf"(x|out|g|d)_{job['contiguous']}"
    constants |= {name: 1 for name in kernel.arg_names if re.fullmatch(pattern, name)}
    signature, constexprs, attributes = {}, {}, {}
    for position, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            constexprs[(position,)] = constants[name]
            continue
        pointer = job["dtype"] if name in FEATURES.get(job["op"], ()) else None
        pointer = pointer or next((dtype for dtype, names in POINTERS.items() if name in names), None)
        if pointer:
            signature[name] = "*" + pointer
        else:
            signature[name] = "fp32" if name in FLOATS else "i32"
        if pointer or (name not in FLOATS and name not in UNSPECIALIZED):
            attributes[(position,)] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(kernel, signature, constexprs, attributes),
        target=GPUTarget("cuda", job["capability"], 32),
        options=job["options"],
    )
    ptx = compiled.asm["ptx"]
    products = re.findall(r"tt\.dot .*?, .*?, (%\w+)", compiled.asm["ttir"])
    return {
        "shared": compiled.metadata.shared,
        "binary": len(compiled.asm["cubin"]),
        "float_atomics": len(re.findall(r"(?:atom|red)\.[\w.]*f(?:16|32|64)", ptx)),
        "fused_float64": len(re.findall(r"fma\.rn\.f64", ptx)),
        "tensor_core": len(re.findall(r"wgmma\.mma_async|mma\.sync|tcgen05\.mma", ptx)),
        "accumulators": sorted({name for name in products if not name.startswith("%cst")}),
    }


def main() -> None:
    """Answer the jobs of standard input."""
    json.dump([compile_job(job) for job in json.load(sys.stdin)], sys.stdout)


if __name__ == "__main__":
    main()
