"""The floor is positive, grows with the work, and never rests on a reduced-precision product."""

from dataclasses import replace

import pytest
import torch

from benchmarks.cases import CASES
from benchmarks.quantizer import floor
from benchmarks.quantizer.problem import QUICK_SHAPES, SHAPES, FeatureProblem


@pytest.mark.parametrize("case", [case for case in CASES if case.work], ids=lambda case: case.name)
def test_the_floor_is_positive(case):
    for shape in SHAPES:
        problem = FeatureProblem(shape)
        assert floor.measured_floor(problem, case.work, gemm_ms=3.0, copy_ms=1.0) > 0
        assert floor.model_floor(problem, case.work, floor.GPU_LIMITS["H100"]) > 0


def test_more_work_needs_more_time():
    problem = FeatureProblem(SHAPES[0])
    lookup, step = floor.Work(gemms=1), floor.Work(gemms=1, feature_passes=5, update=True)
    assert floor.measured_floor(problem, step, 3.0, 1.0) > floor.measured_floor(problem, lookup, 3.0, 1.0)
    limits = floor.GPU_LIMITS["H100"]
    larger = FeatureProblem(replace(SHAPES[0], num_codes=4096))
    assert floor.model_floor(larger, lookup, limits) > floor.model_floor(problem, lookup, limits)
    assert floor.model_floor(problem, step, limits) > floor.model_floor(problem, lookup, limits)


def test_half_precision_lowers_the_limit():
    limits = floor.GPU_LIMITS["H100"]
    full, half = (FeatureProblem(SHAPES[3], dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    assert floor.model_floor(half, floor.Work(), limits) < floor.model_floor(full, floor.Work(), limits)


def test_limits_are_found_by_device_name():
    assert floor.limits_for("NVIDIA H100 80GB HBM3") is floor.GPU_LIMITS["H100"]
    assert floor.limits_for("Imaginary GPU") is None


def test_products_are_right_and_the_setting_is_restored():
    problem = FeatureProblem(QUICK_SHAPES[0])
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    variants = floor.gemm_variants(problem, keep=9)
    assert variants
    for variant in variants:
        product = variant.task.run(None)
        assert torch.allclose(product, problem.rows @ problem.codebook.t(), atol=1e-4)
    assert setting.fp32_precision == before


def test_a_reduced_precision_product_is_no_floor():
    rows, codes = torch.randn(64, 32), torch.randn(32, 16)

    def rounded(_):
        return (rows.bfloat16() @ codes.bfloat16()).float()

    assert floor._is_fp32(lambda _: rows @ codes, rows, codes, 64)
    assert not floor._is_fp32(rounded, rows, codes, 64)
