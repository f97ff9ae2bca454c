"""Launch configurations of the Triton kernels: one plain table, readable and testable without a GPU.

There is no autotuning.  A configuration depends on the op, the generation of the device, the number of
channels and whether there are few or many rows; it never depends on the exact number of rows, so that a new
batch size compiles nothing.  The block sizes follow from register and shared-memory budgets that the
ahead-of-time compiler reports; they have not been tuned on a device.

* ``lookup``: coarse certified search, tiles of ``block_n`` rows x ``block_k`` codes x ``block_d`` channels
* ``rescore``: float64 search, ``block_n`` rows per program, ``block_k`` x ``block_d`` of the codes at a time
* ``sums``: per-code sums, ``block_k`` codes x ``block_d`` channels per program, ``block_n`` rows at a time
* ``commit``: moving averages, ``block_k`` codes per program, ``block_d`` channels at a time
* ``backward``: ``block_n`` rows x ``block_d`` channels per program
"""

from __future__ import annotations

from typing import NamedTuple

import torch

#: Pseudo-capability of Triton's interpreter on the CPU.
INTERPRETER = (0, 0)

#: Up to this many rows the rows are cut finer, so that a small layer still reaches every multiprocessor.
FEW_ROWS = 8192


class LaunchConfig(NamedTuple):
    """Shape of one launch.

    Args:
        block_n: rows per tile.
        block_k: codes per tile.
        block_d: channels per tile; also the length over which a tensor-core product accumulates.
        num_warps: warps per program.
        num_stages: depth of the software pipeline.
        dot: precision of the matrix product, in Triton's names; empty where the kernel has none.
    """

    block_n: int
    block_k: int
    block_d: int
    num_warps: int
    num_stages: int
    dot: str = ""


class Entry(NamedTuple):
    """A line of the table, for up to `max_rows` rows of up to `max_dim` channels; 0 sets no limit."""

    max_rows: int
    max_dim: int
    config: LaunchConfig


_C = LaunchConfig

# What decides each op:
#
#   lookup    Accumulators of block_n x block_k take registers, and tiles of (block_n + block_k) x block_d,
#             times the stages, shared memory. Few rows are cut into 32: 8192 of them are 256 programs,
#             about two for each multiprocessor of a large device. block_d is also the length of one
#             tensor-core sum: a longer one loosens the error bound, and more rows need a second look.
#   sums      block_k is how many codes share one reading of the indices; the sums of a tile take registers.
#   rescore   Hardly any row has work, and one that has sweeps all codes by itself: large tiles of codes.
#   commit    Bound by memory, and every program reads all counts: few, wide programs.
#   backward  Bound by memory: as many elements as keep the loads of a program in flight.
#
# op -> device family -> lines; the first line that fits is taken.  Family 80 serves every device from compute
# capability 8.0 on that has no family of its own and therefore stays within the 99 KiB of shared memory of
# the small ones.  Family 0 is the interpreter: small tiles, so that small inputs still cross tile borders.
_TABLE: dict[str, dict[int, tuple[Entry, ...]]] = {
    # Three products (tf32x3) keep the error radius small, so that few rows are scored again. Lines of up to
    # 16 channels serve codecs, whose tiles would otherwise be padding.
    "lookup": {
        0: (Entry(0, 16, _C(32, 16, 16, 4, 1, "ieee")), Entry(0, 0, _C(32, 32, 32, 4, 1, "ieee"))),
        80: (
            Entry(FEW_ROWS, 16, _C(32, 64, 16, 4, 2, "tf32x3")),
            Entry(FEW_ROWS, 0, _C(32, 64, 32, 4, 2, "tf32x3")),
            Entry(0, 16, _C(64, 64, 16, 4, 2, "tf32x3")),
            Entry(0, 0, _C(64, 64, 32, 8, 2, "tf32x3")),
        ),
        90: (
            Entry(FEW_ROWS, 16, _C(32, 64, 16, 4, 2, "tf32x3")),
            Entry(FEW_ROWS, 0, _C(32, 64, 32, 4, 2, "tf32x3")),
            Entry(0, 16, _C(128, 64, 16, 8, 2, "tf32x3")),
            Entry(0, 32, _C(128, 64, 32, 8, 2, "tf32x3")),
            Entry(0, 64, _C(128, 64, 64, 8, 2, "tf32x3")),
            Entry(0, 0, _C(128, 64, 32, 8, 2, "tf32x3")),
        ),
        100: (
            Entry(FEW_ROWS, 16, _C(32, 64, 16, 4, 2, "tf32x3")),
            Entry(FEW_ROWS, 0, _C(32, 64, 32, 4, 2, "tf32x3")),
            Entry(0, 16, _C(128, 64, 16, 8, 2, "tf32x3")),
            Entry(0, 0, _C(128, 64, 32, 8, 2, "tf32x3")),
        ),
    },
    # No matrix product: one line of 80 serves every generation. So it is for commit and backward.
    "rescore": {
        0: (Entry(0, 0, _C(32, 32, 32, 4, 1)),),
        80: (Entry(0, 32, _C(64, 128, 32, 4, 1)), Entry(0, 0, _C(64, 64, 64, 4, 1))),
    },
    # Plain tf32 is exact here: the operands are cut into pieces of 11 bits.
    "sums": {
        0: (Entry(0, 0, _C(64, 32, 32, 4, 1, "ieee")),),
        80: (
            Entry(0, 16, _C(32, 64, 16, 4, 1, "tf32")),
            Entry(0, 32, _C(32, 64, 32, 4, 1, "tf32")),
            Entry(0, 0, _C(32, 64, 64, 4, 1, "tf32")),
        ),
    },
    "commit": {
        0: (Entry(0, 0, _C(1, 16, 32, 4, 1)),),
        80: (Entry(0, 32, _C(1, 32, 32, 4, 1)), Entry(0, 0, _C(1, 16, 128, 4, 1))),
    },
    "backward": {
        0: (Entry(0, 0, _C(32, 1, 32, 4, 1)),),
        80: (
            Entry(0, 16, _C(128, 1, 16, 4, 1)),
            Entry(0, 32, _C(64, 1, 32, 4, 1)),
            Entry(0, 0, _C(64, 1, 64, 4, 1)),
        ),
    },
}

OPS = tuple(_TABLE)
#: Families with ahead-of-time compiled code, as compute capability (major, minor).
FAMILIES = ((8, 0), (9, 0), (10, 0))

_KIB = 1024
# Shared memory that one block may use, CUDA C++ programming guide, table "Technical specifications per
# compute capability": the memory per multiprocessor less 1 KiB that the system keeps.
_SHARED_LIMIT = {(8, 0): 163, (8, 7): 163, (9, 0): 227, (10, 0): 227, (10, 3): 227}


def shared_memory_limit(capability: tuple[int, int]) -> int:
    """Return the bytes of shared memory of one block; the 99 KiB of small devices where unknown."""
    return _SHARED_LIMIT.get(capability, 99) * _KIB


def _family(capability: tuple[int, int]) -> int:
    if capability == INTERPRETER:
        return 0
    if capability < (8, 0):
        raise ValueError(
            "the Triton kernels need a GPU of compute capability 8.0 or later, "
            f"got {capability[0]}.{capability[1]}; set FQ_TOOLKIT_BACKEND=reference to run in plain torch"
        )
    return {9: 90, 10: 100}.get(capability[0], 80)


def launch_config(
    op: str, n: int, k: int, d: int, dtype: torch.dtype, capability: tuple[int, int]
) -> LaunchConfig:
    """Look up the launch configuration of an op.

    Args:
        op: one of `OPS`.
        n: number of rows.
        k: number of codes; large dictionaries get larger code blocks in ``commit``.
        d: number of channels.
        dtype: dtype of the features; float64 halves the rows per tile, as its tiles take twice the registers.
        capability: compute capability of the device, or `INTERPRETER`.

    Returns:
        The configuration; the same for all ``n`` on the same side of `FEW_ROWS`.

    Raises:
        ValueError: for an unknown op or a device that is too old.

    >>> launch_config("lookup", 32768, 1024, 256, torch.float32, (9, 0)).dot
    'tf32x3'
    """
    if op not in _TABLE:
        raise ValueError(f"no launch configuration for op {op!r}; known ops: {', '.join(OPS)}")
    families = _TABLE[op]
    family = _family(capability)
    entries = families.get(family, families[80])
    config = next(
        entry.config
        for entry in entries
        if (entry.max_rows == 0 or n <= entry.max_rows) and (entry.max_dim == 0 or d <= entry.max_dim)
    )
    if op == "commit" and family:
        # Every program adds up all K counts; fewer, larger programs keep that reading small.
        config = config._replace(block_k=config.block_k * (8 if k > 8192 else 1))
    if dtype == torch.float64 and op in ("lookup", "backward") and family:
        config = config._replace(block_n=max(16, config.block_n // 2))
    return config


def all_configs() -> list[tuple[str, tuple[int, int], torch.dtype, LaunchConfig]]:
    """Return every configuration a device can get, ``(op, capability, dtype, config)``, each once."""
    configs = []
    for capability in FAMILIES:
        for op, families in _TABLE.items():
            for entry in families.get(_family(capability), families[80]):
                rows, dim = entry.max_rows or FEW_ROWS + 1, entry.max_dim or 1 << 20
                for codes in (1024, 65536):
                    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
                        config = launch_config(op, rows, codes, dim, dtype, capability)
                        configs.append((op, capability, dtype, config))
    return list(dict.fromkeys(configs))


def device_capability(x: torch.Tensor) -> tuple[int, int]:
    """Return the compute capability of a tensor's device; `INTERPRETER` for the CPU."""
    return torch.cuda.get_device_capability(x.device) if x.is_cuda else INTERPRETER
