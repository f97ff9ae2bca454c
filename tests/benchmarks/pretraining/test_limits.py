"""The count of products, against what torch counts while both contenders run."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.pretraining.contenders import Pretraining, batch_of_arrays, batch_of_samples
from benchmarks.pretraining.limits import Rows, our_rows, port_rows, products, table, trimmed_rows
from benchmarks.pretraining.port import ReleasedPretraining
from benchmarks.pretraining.problem import ACTIONS, SHAPES, StepProblem, StepShape
from benchmarks.pretraining.targets import LEAST

PROBLEM = StepProblem(StepShape("tiny", 3, 64, text_layers=2, cross_layers=3))


@pytest.mark.parametrize(
    ("network", "batch", "rows"),
    [(ReleasedPretraining, batch_of_samples, port_rows), (Pretraining, batch_of_arrays, our_rows)],
)
def test_products_are_those_that_are_made(
    network: type[torch.nn.Module],
    batch: Callable[[StepProblem], tuple[Tensor, ...]],
    rows: Callable[[StepProblem], Rows],
) -> None:
    # Imports Triton, which the tests of the kernels must be the first to do.
    from torch.utils.flop_counter import FlopCounterMode

    config = PROBLEM.shape.config()
    with FlopCounterMode(display=False) as counter:
        network(config, ACTIONS).train()(*batch(PROBLEM)).backward()
    assert counter.get_total_flops() == 2 * products(config, rows(PROBLEM)).total


def test_products_alone_reach_the_target_only_without_padding() -> None:
    for shape in SHAPES:
        problem, config = StepProblem(shape), shape.config()
        most = products(config, port_rows(problem)).total
        assert most / products(config, our_rows(problem)).total > 1.25 * LEAST
        assert most / products(config, trimmed_rows(problem)).total < LEAST


def test_the_table_has_every_size() -> None:
    lines = table().splitlines()
    assert len(lines) == 2 + 3 * len(SHAPES)
    assert len({line.count("|") for line in lines}) == 1
    assert [float(line.split("|")[-2]) for line in lines[2::3]] == [1.0] * len(SHAPES)
