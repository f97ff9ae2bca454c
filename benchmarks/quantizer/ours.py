"""The package's own contenders, reached through its public layer and its ops."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.contender import Contender, Task
from benchmarks.quantizer.peers import DECAY, LayerCall, LayerFactory, batch_statistics
from benchmarks.quantizer.problem import FeatureProblem
from fq_toolkit import FeatureQuantizer
from fq_toolkit.kernels import ops

OURS = "FeatureQuantizer"
FAST = "FeatureQuantizer, fast"
REGULARIZE = "FeatureQuantizer, regularize"


def backend(device: str) -> str:
    """Return which kernels run on this device."""
    return ops.select_backend(torch.empty(1, 1, 1, 1, device=device))


def _lookup(exact: bool) -> Callable[[FeatureProblem], Task]:
    def build(problem: FeatureProblem) -> Task:
        rows = problem.rows[:, :, None, None]
        codebook, center = problem.codebook, problem.center

        def run(_: object) -> Tensor:
            return ops.quantize_forward(rows, codebook, center, None, 1.0, False, False, exact)[1]

        return Task(run, indices=lambda found: found)

    return build


def layer(mode: str = "straight_through", precision: str = "exact") -> LayerFactory:
    """Make the layer with the problem's dictionary, as if it had been trained for a step."""

    def make(problem: FeatureProblem) -> tuple[nn.Module, LayerCall]:
        module = FeatureQuantizer(
            problem.shape.dim, problem.shape.num_codes, mode=mode, precision=precision, decay=DECAY
        ).to(problem.device)
        # Loaded rather than learned: all contenders search the same dictionary, and no first step fills it.
        state = module.state_dict()
        filled = {
            "codebook": problem.codebook,
            "ema_counts": torch.ones_like(state["ema_counts"]),
            "ema_sums": problem.codebook,
            "num_updates": torch.ones_like(state["num_updates"]),
            "initialized": torch.ones_like(state["initialized"]),
        }
        module.load_state_dict(state | filled)

        def call(x: Tensor) -> tuple[Tensor, Tensor]:
            result = module.quantize(x)
            return result.quantized, result.loss.mean()

        return module, call

    return make


def _commit(problem: FeatureProblem) -> Task:
    counts, sums = batch_statistics(problem)
    codebook, moving_sums = problem.codebook.clone(), problem.codebook.clone()
    moving_counts, center = torch.ones_like(counts), problem.center.clone()
    num_updates = torch.ones((), dtype=torch.int64, device=problem.device)

    def run(_: object) -> Tensor:
        ops.ema_commit_(
            codebook,
            moving_counts,
            moving_sums,
            center,
            num_updates,
            counts,
            sums,
            DECAY,
            1e-5,
            False,
        )
        return codebook

    return Task(run)


LOOKUPS = (
    Contender(OURS, _lookup(True), kind="ours", package="fq-toolkit"),
    Contender(FAST, _lookup(False), kind="ours", package="fq-toolkit"),
)
COMMITS = (Contender(OURS, _commit, kind="ours", package="fq-toolkit"),)


def layers(
    measure: Callable[[LayerFactory], Callable[[FeatureProblem], Task]], *, variants: bool
) -> list[Contender]:
    """Return our layer under one kind of measurement; with ``variants`` also regularize and fast."""
    entries = [Contender(OURS, measure(layer()), kind="ours", package="fq-toolkit")]
    if variants:
        entries += [
            Contender(REGULARIZE, measure(layer(mode="regularize")), kind="ours", package="fq-toolkit"),
            Contender(FAST, measure(layer(precision="fast")), kind="ours", package="fq-toolkit"),
        ]
    return entries
