"""Peers compute what they claim, and an absent one is a reason, not an error."""

import pytest
import torch

from benchmarks.cases import CASES
from benchmarks.contender import Contender, Task, Unavailable
from benchmarks.quantizer import peers
from benchmarks.quantizer.oracle import nearest_code
from benchmarks.quantizer.problem import QUICK_SHAPES, SHAPES, FeatureProblem


@pytest.mark.parametrize("contender", peers.LOOKUPS, ids=lambda contender: contender.name)
def test_lookups_agree_on_easy_data(contender):
    problem = FeatureProblem(QUICK_SHAPES[0])
    reason = contender.reason_to_skip(problem, 1 << 30)
    if reason:
        pytest.skip(reason)
    try:
        task = contender.build(problem)
    except Unavailable as error:
        pytest.skip(str(error))
    found = task.indices(task.run(task.setup())).numpy()
    assert (found == nearest_code(problem.rows.numpy(), problem.codebook.numpy())).all()


@pytest.mark.parametrize("shape", QUICK_SHAPES, ids=lambda shape: shape.name)
def test_the_released_formula(shape):
    """Output, loss and dictionary against the formulas, written with loops."""
    problem = FeatureProblem(shape)
    module, call = peers.released_layer(problem)
    out, loss = call(problem.features)
    index = nearest_code(problem.rows.numpy(), problem.codebook.numpy())
    chosen = problem.codebook[torch.from_numpy(index)]
    by_row = out if shape.layout == "blc" else out.movedim(1, -1)
    assert torch.allclose(by_row.reshape(-1, shape.dim), chosen, atol=1e-6)
    assert torch.allclose(loss, (chosen - problem.rows).square().mean(), rtol=1e-5)
    for code in range(shape.num_codes):
        members = problem.rows[torch.from_numpy(index == code)]
        assert torch.allclose(module.counts[code], torch.tensor(0.9 + 0.1 * len(members)), rtol=1e-5)
        expected = 0.9 * problem.codebook[code] + 0.1 * members.sum(0)
        assert torch.allclose(module.sums[:, code], expected, atol=1e-4)


def test_both_layers_give_the_straight_through_gradient():
    for name in ("released layer", "lucidrains"):
        contender = next(entry for entry in peers.layer_peers(peers.train_step) if entry.name == name)
        problem = FeatureProblem(QUICK_SHAPES[0])
        try:
            _, dx = (task := contender.build(problem)).run(task.setup())
        except Unavailable:
            continue
        residual = (
            problem.rows
            - problem.codebook[torch.from_numpy(nearest_code(problem.rows.numpy(), problem.codebook.numpy()))]
        )
        expected = problem.grad.movedim(1, -1).reshape(residual.shape) + 2 * residual / residual.numel()
        assert torch.allclose(dx.movedim(1, -1).reshape(residual.shape), expected, atol=1e-6), name


def test_too_large_for_the_memory_is_a_reason():
    huge = next(shape for shape in SHAPES if shape.name == "I128 L0")
    released = next(iter(peers.layer_peers(peers.train_step)))
    assert "does not fit: about 8.2 GiB" in released.reason_to_skip(FeatureProblem(huge), 8 << 30)
    assert released.reason_to_skip(FeatureProblem(huge), 12 << 30) is None


def test_a_missing_package_is_a_reason():
    with pytest.raises(Unavailable, match="no-such-peer cannot be imported"):
        peers._import("no_such_peer_module", "no-such-peer")


def test_a_gpu_only_peer_says_so_on_a_cpu():
    contender = Contender("x", lambda problem: Task(lambda _: None), devices=("cuda",))
    assert contender.reason_to_skip(FeatureProblem(QUICK_SHAPES[0]), 1 << 30) == "runs on cuda only"


def test_contenders_are_unique_within_a_case():
    for case in CASES:
        names = [contender.name for contender in case.contenders]
        assert len(set(names)) == len(names), case.name
