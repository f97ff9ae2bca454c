"""The cases: what is measured, on which shapes, by whom, behind which gates, against which floor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.contender import AnyShape, Contender
from benchmarks.latent import generate as latent_generate
from benchmarks.latent import problem as latent
from benchmarks.latent import train as latent_train
from benchmarks.navigation import contenders as navigation
from benchmarks.navigation import problem as graphs
from benchmarks.pretraining import contenders as pretraining
from benchmarks.pretraining import problem as steps
from benchmarks.quantizer import discriminator, floor, ours, peers
from benchmarks.quantizer.floor import Work
from benchmarks.quantizer.problem import (
    LAYOUTS,
    QUICK_SHAPES,
    REFERENCE_SHAPE,
    SHAPES,
    FeatureProblem,
    shapes_named,
)

_SOME = shapes_named("C10 L0", "StyleGAN2", "VQGAN", "codec")
_LAYER_GATES = ("lookup", "sums", "backward", "commit", "layer")


def _no_result(_: Any) -> int:
    return 0


@dataclass(frozen=True)
class Case:
    """One kind of measurement.

    Args:
        name: on the command line and in the results.
        title: for plots.
        shapes: measured shapes.
        quick_shapes: stand-ins for smoke tests.
        contenders: who takes part.
        gates: what must be right before anything is timed.
        work: what the floor counts, or None when there is no floor.
        result_bytes: bytes of the results that every contender must return, not counted as extra memory.
        memory: how peak extra memory is measured (`benchmarks.memory`); None where it is not.
        memory_shapes: names of the shapes on which it is; None for all.
        problem: makes from shape, device and dtype what is measured on.
        min_rounds: at least so many rounds, however long they take, where a "base" is compared with.
    """

    name: str
    title: str
    shapes: tuple[AnyShape, ...]
    contenders: tuple[Contender, ...]
    gates: tuple[str, ...]
    work: Work | None
    quick_shapes: tuple[AnyShape, ...] = QUICK_SHAPES
    result_bytes: Callable[[Any], int] = _no_result
    memory: Literal["resident", "tensors"] | None = "resident"
    memory_shapes: tuple[str, ...] | None = None
    problem: Callable[..., Any] = FeatureProblem
    min_rounds: int = 3


def _feature_arrays(count: int) -> Callable[[FeatureProblem], int]:
    return lambda problem: count * problem.feature_bytes


CASES = (
    Case(
        "lookup",
        "nearest code of N contiguous rows",
        SHAPES,
        (*ours.LOOKUPS, *peers.LOOKUPS, floor.plain_gemm()),
        ("lookup",),
        Work(gemms=1),
    ),
    Case(
        "train_step",
        "forward, dictionary update and backward",
        SHAPES,
        (*ours.layers(peers.train_step, variants=True), *peers.layer_peers(peers.train_step)),
        _LAYER_GATES,
        # write q, read x again for the sums, read x and g and write dx
        Work(gemms=1, feature_passes=5, code_passes=4, update=True),
        result_bytes=_feature_arrays(2),
    ),
    Case(
        "eval_forward",
        "forward in evaluation",
        _SOME,
        (*ours.layers(peers.eval_forward, variants=False), *peers.layer_peers(peers.eval_forward)),
        _LAYER_GATES,
        Work(gemms=1, feature_passes=1),
        result_bytes=_feature_arrays(1),
    ),
    Case(
        "backward",
        "backward of a training forward",
        _SOME,
        (*ours.layers(peers.backward_only, variants=False), *peers.layer_peers(peers.backward_only)),
        _LAYER_GATES,
        Work(gemms=0, feature_passes=3),
        result_bytes=_feature_arrays(1),
    ),
    Case(
        "commit",
        "one step of the moving averages",
        _SOME,
        (*ours.COMMITS, *peers.COMMITS),
        ("commit",),
        # read the batch sums, read and write the moving sums, write the codebook
        Work(gemms=0, code_passes=4),
        memory=None,
    ),
    Case(
        "layouts",
        "training step by memory layout",
        tuple(REFERENCE_SHAPE.with_layout(layout) for layout in LAYOUTS),
        (*ours.layers(peers.train_step, variants=False), *peers.layer_peers(peers.train_step)),
        _LAYER_GATES,
        Work(gemms=1, feature_passes=5, code_passes=4, update=True),
        quick_shapes=tuple(QUICK_SHAPES[0].with_layout(layout) for layout in LAYOUTS),
        result_bytes=_feature_arrays(2),
    ),
    Case(
        "discriminator_overhead",
        "optimizer step of a discriminator",
        (discriminator.SHAPE,),
        discriminator.CONTENDERS,
        _LAYER_GATES,
        None,
        quick_shapes=(discriminator.QUICK_SHAPE,),
        memory=None,
    ),
    Case(
        "env_steps",
        "navigation: steps of B agents with teacher, reward and mask",
        graphs.ENV_SHAPES,
        navigation.ENV_STEPS,
        ("nav_env",),
        None,
        quick_shapes=graphs.ENV_QUICK,
        memory=None,
        problem=graphs.GraphProblem,
    ),
    Case(
        "world_loading",
        "navigation: reading connectivity files",
        graphs.WORLD_SHAPES,
        navigation.WORLDS,
        ("nav_world",),
        None,
        quick_shapes=graphs.WORLD_QUICK,
        memory=None,
        problem=graphs.GraphProblem,
    ),
    Case(
        "triplets",
        "navigation: one triplet per time step of paths",
        graphs.TRIPLET_SHAPES,
        navigation.TRIPLET_BUILDERS,
        ("nav_triplets",),
        None,
        quick_shapes=graphs.TRIPLET_QUICK,
        memory=None,
        problem=graphs.GraphProblem,
    ),
    Case(
        "nav_metrics",
        "navigation: all metrics of a split",
        graphs.METRIC_SHAPES,
        navigation.PATH_METRICS,
        ("nav_metrics",),
        None,
        quick_shapes=graphs.METRIC_QUICK,
        memory=None,
        problem=graphs.GraphProblem,
    ),
    Case(
        latent.GENERATE,
        "greedy generation of T tokens for B latents",
        latent.GENERATION_SHAPES,
        latent_generate.CONTENDERS,
        ("latent",),
        None,
        quick_shapes=latent.QUICK_TEXT,
        memory_shapes=(latent.MEMORY_SHAPE.name,),
        problem=latent.TextProblem,
        min_rounds=15,
        memory="tensors",
    ),
    Case(
        latent.TRAIN,
        "optimizer step of a decoder",
        latent.TRAINING_SHAPES,
        latent_train.CONTENDERS,
        ("latent",),
        None,
        quick_shapes=latent.QUICK_TEXT[1:],
        problem=latent.TextProblem,
        memory="tensors",
    ),
    Case(
        pretraining.CASE,
        "optimizer step of PREVALENT's pretraining",
        steps.SHAPES,
        pretraining.CONTENDERS,
        (pretraining.CASE,),
        None,
        quick_shapes=steps.QUICK_SHAPES,
        memory=None,
        problem=steps.StepProblem,
    ),
)
BY_NAME = {case.name: case for case in CASES}


def find(case_name: str, shape_name: str, contender_name: str) -> tuple[Case, AnyShape, Contender]:
    """Look up all three by name."""
    case = BY_NAME[case_name]
    shape = next(shape for shape in (*case.shapes, *case.quick_shapes) if shape.name == shape_name)
    contender = next(contender for contender in case.contenders if contender.name == contender_name)
    return case, shape, contender
