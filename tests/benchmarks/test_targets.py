"""The targets of all devices over a small set of rows, and those that none of them tells."""

import pytest

from benchmarks.targets import TARGETS, cpu_targets, gpu_targets
from benchmarks.verdict import geometric_mean
from tests.benchmarks.rows import ROWS


def test_targets_are_judged():
    found = {verdict.text: verdict for verdict in cpu_targets(ROWS)}
    released = found["training step, faster than the released layer"]
    assert (round(released.value, 2), released.word) == (12.65, "met")  # sqrt(10 * 16)
    assert found["training step, faster than lucidrains"].word == "missed"
    assert found["lookup, faster than faiss"].found == "2.00x"
    assert found["lookup, time over the fastest fp32 product"].word == "met"
    memory = [verdict for text, verdict in found.items() if text.startswith("extra memory")]
    assert [verdict.word for verdict in memory] == ["met", "missed"]
    assert {verdict.word for verdict in gpu_targets(ROWS)} == {"not measured"}


def test_the_geometric_mean_of_a_constant_is_the_constant():
    assert geometric_mean([8.0, 8.0]) == pytest.approx(8)
    assert geometric_mean([]) is None


def test_every_target_belongs_to_the_devices():
    for judge in TARGETS.values():
        assert sum("latent" in verdict.text for verdict in judge([])) == 2
