"""Where a private name of torch is gone, what needs it still does what its docstring says."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from fq_toolkit.kernels import private
from fq_toolkit.layers import FeatureQuantizer, commitment_loss


def step(layer: FeatureQuantizer, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    (layer(x).square().sum() + commitment_loss(layer)).backward()
    return x.grad


@pytest.fixture
def without_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_transforms_active", "_graph_task", "_saving_hooks"):
        monkeypatch.setattr(private, name, None)
    monkeypatch.delattr(torch.compiler, "_is_exporting_flag")
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: False)  # which asks the flag itself
    monkeypatch.delattr(DistributedDataParallel, "_active_ddp_module", raising=False)


def test_the_names_are_there() -> None:
    assert None not in (private._transforms_active, private._graph_task, private._saving_hooks)
    assert hasattr(torch.compiler, "_is_exporting_flag")
    assert hasattr(forward_ad, "_current_level")
    assert hasattr(DistributedDataParallel, "_active_ddp_module")
    assert hasattr(torch.distributed.distributed_c10d, "_resolve_process_group")


def test_a_plain_step_needs_none_of_them(request: pytest.FixtureRequest) -> None:
    x = torch.randn(20, 4)
    layer, twin = FeatureQuantizer(4, 8), FeatureQuantizer(4, 8)
    expected = step(twin, x)
    request.getfixturevalue("without_names")
    assert torch.equal(step(layer, x), expected)
    assert torch.equal(layer.codebook, twin.codebook)


@pytest.mark.usefixtures("without_names")
def test_answers_without_the_names() -> None:
    assert not private.under_export()
    assert not private.under_transform()
    assert private.current_backward_pass() is None
    assert private.saves_through_hooks()
    assert not private.joins_uneven_inputs()
    with forward_ad.dual_level():
        assert private.under_transform()


def test_a_hook_that_is_not_seen_costs_a_walk_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpointing is still told from a plain forward, as its regions are found on the stack."""
    monkeypatch.setattr(private, "_saving_hooks", None)
    x = torch.randn(20, 4)
    layer, twin = FeatureQuantizer(4, 8), FeatureQuantizer(4, 8)
    expected, leaf = step(twin, x), x.clone().requires_grad_()
    out = checkpoint(layer, leaf, use_reentrant=False)
    (out.square().sum() + commitment_loss(layer)).backward()
    assert torch.equal(leaf.grad, expected)
    assert torch.equal(layer.codebook, twin.codebook)
    assert int(layer.num_updates) == 1


def test_a_group_that_cannot_be_found_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.distributed.distributed_c10d, "_resolve_process_group")
    with pytest.raises(RuntimeError, match="cannot find the process group 'mine'"):
        private.process_group("mine")
