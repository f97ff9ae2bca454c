"""Section 4: losses accumulate until they are read, and never keep graphs alive for ever."""

import copy
import gc
import io
import pickle
import warnings
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fq_toolkit.layers import FeatureQuantizer, collect_commitment, commitment_loss, frozen
from fq_toolkit.layers.quantizer.ledger import MAX_UNREAD


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), FeatureQuantizer(6, 8), nn.Conv2d(6, 4, 3), FeatureQuantizer(4, 8), nn.Flatten()
    )


def test_sums_over_layers_and_calls_and_clears() -> None:
    net = network()
    real, fake = torch.randn(4, 3, 8, 8), torch.randn(2, 3, 8, 8)
    net(real)
    with frozen(net):
        inside = []
        for x in (real, fake):
            net(x)
            inside.append(commitment_loss(net))
        net(real)
        net(fake)
        both = commitment_loss(net)
        torch.testing.assert_close(both, inside[0] + inside[1])
        assert commitment_loss(net) == 0
    assert both.shape == ()
    assert both.dtype == torch.float32


def test_is_the_mean_over_the_batch_of_the_per_sample_losses() -> None:
    layer = FeatureQuantizer(4, 8, init="normal").eval()
    x = torch.randn(5, 4, 3, 3, requires_grad=True)
    layer(x)
    torch.testing.assert_close(commitment_loss(layer), layer.quantize(x).loss.mean())


def test_gradient_of_real_and_fake_calls() -> None:
    net = network()
    real, fake = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    loss = net(real).mean() - net(fake).mean() + commitment_loss(net)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in net[0].parameters())


def test_calls_without_grad_are_not_recorded() -> None:
    net = network()
    with torch.no_grad():
        net(torch.randn(4, 3, 8, 8))
    assert commitment_loss(net) == 0
    layer = FeatureQuantizer(4, 8)
    layer(torch.randn(4, 4))
    assert not layer.ledger.losses()


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("mode", ["straight_through", "regularize", "rotation"])
def test_an_evaluation_can_be_differentiated_after_a_training_forward(mode: str, checkpointed: bool) -> None:
    layer = FeatureQuantizer(4, 8, mode=mode, decay=0.5)
    layer(torch.randn(20, 4))
    x = torch.randn(6, 4, requires_grad=True)

    def loss(x: torch.Tensor) -> torch.Tensor:
        out = layer.quantize(x)
        return out.quantized.sin().sum() + out.loss.sum()

    layer.eval()
    (expected,) = torch.autograd.grad(loss(x), x)
    late = checkpoint(loss, x, use_reentrant=False) if checkpointed else loss(x)
    layer.train()
    for _ in range(3):
        layer(torch.randn(20, 4) + 1)
    (got,) = torch.autograd.grad(late, x)
    assert torch.equal(got, expected)


class Tag:
    """Something that dies with the graph that holds it."""


class Tagged(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, tags: list) -> torch.Tensor:
        ctx.tag = Tag()
        tags.append(weakref.ref(ctx.tag))
        return x.clone()

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple:
        return grad, None


def test_losses_that_nobody_reads_are_bounded_and_warned_about_once() -> None:
    layer = FeatureQuantizer(4, 8)
    graphs = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3 * MAX_UNREAD):
            layer(Tagged.apply(torch.randn(2, 4, requires_grad=True), graphs))
    gc.collect()
    assert sum(graph() is not None for graph in graphs) == MAX_UNREAD
    assert len([w for w in caught if "unread" in str(w.message)]) == 1
    assert len(layer.ledger.take()) == MAX_UNREAD


def test_a_gradient_penalty_under_frozen_leaves_no_stale_graph() -> None:
    net = network()
    net(torch.randn(4, 3, 8, 8))
    commitment_loss(net)
    real = torch.randn(4, 3, 8, 8, requires_grad=True)
    with frozen(net):
        (gradient,) = torch.autograd.grad(net(real).sum(), real, create_graph=True)
        gradient.square().sum().backward()
    loss = net(real).mean() + commitment_loss(net)
    loss.backward()


def test_frozen_has_books_of_its_own_and_gives_the_old_ones_back() -> None:
    net = network()
    x = torch.randn(4, 3, 8, 8)
    net(x)
    with frozen(net):
        assert commitment_loss(net) == 0
        net(x)
    assert commitment_loss(net) > 0
    assert commitment_loss(net) == 0


def test_frozen_restores_after_an_error_and_nests() -> None:
    net = network()
    with pytest.raises(RuntimeError, match="inside"), frozen(net), frozen(net):
        raise RuntimeError("inside")
    net(torch.randn(4, 3, 8, 8))
    assert int(net[1].num_updates) == 1


def test_collect_commitment_is_explicit_and_separate() -> None:
    net = network()
    x = torch.randn(4, 3, 8, 8)
    net(x)
    with collect_commitment(net) as collected:
        net(x)
        net(x[:2])
        assert [len(losses) for losses in collected.per_sample.values()] == [2, 2]
    assert set(collected.per_sample) == {"1", "3"}
    assert [loss.shape for loss in collected.per_sample["1"]] == [(4,), (2,)]
    expected = sum(loss.mean() for losses in collected.per_sample.values() for loss in losses)
    torch.testing.assert_close(collected.total(), expected)
    collected.total().backward()
    assert commitment_loss(net) > 0  # the call before the block


def test_collect_commitment_without_calls_is_zero() -> None:
    with collect_commitment(network()) as collected:
        pass
    assert collected.total() == 0


@pytest.mark.parametrize("mode", ["straight_through", "regularize", "rotation"])
@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_right_after_a_forward_are_independent(mode: str, copier: Callable) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), FeatureQuantizer(4, 8, mode=mode), nn.Conv2d(4, 1, 3))
    net(torch.randn(4, 3, 8, 8))
    with frozen(net):
        net(torch.randn(4, 3, 8, 8))
        copied = copier(net)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert commitment_loss(copied) == 0
    copied(torch.randn(4, 3, 8, 8))
    assert int(copied[1].num_updates) == 2  # not frozen, although it was copied inside the block
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert commitment_loss(net) > 0


def test_torch_save_of_a_whole_module() -> None:
    layer = FeatureQuantizer(4, 8)
    layer(torch.randn(9, 4, requires_grad=True))
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    x = torch.randn(9, 4)
    assert torch.equal(loaded.eval()(x), layer.eval()(x))


def test_quantize_returns_its_loss_and_records_nothing() -> None:
    layer = FeatureQuantizer(4, 8)
    out = layer.quantize(torch.randn(3, 4, requires_grad=True))
    assert out.loss.requires_grad
    assert commitment_loss(layer) == 0


def test_empty_batch_has_zero_loss() -> None:
    layer = FeatureQuantizer(4, 8)
    layer(torch.zeros(0, 4, requires_grad=True))
    assert commitment_loss(layer) == 0
