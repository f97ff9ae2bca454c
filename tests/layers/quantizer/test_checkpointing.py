"""Activation checkpointing: one update per step, and gradients as without it."""

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fq_toolkit.layers import FeatureQuantizer, ResidualQuantizer, commitment_loss, frozen


class Block(nn.Module):
    def __init__(self, mode: str = "straight_through", calls: int = 1) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.quantizer = FeatureQuantizer(4, 8, mode=mode, decay=0.5)
        self.last = nn.Linear(4, 4)
        self.calls = calls

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(self.calls):
            x = self.quantizer(x) * 1.1
        return self.last(x).tanh()

    def with_loss(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.quantizer.quantize(self.first(x))
        return self.last(out.quantized).tanh(), out.loss


def pair(**options: object) -> tuple[Block, Block]:
    torch.manual_seed(0)
    plain = Block(**options)
    other = Block(**options)
    other.load_state_dict(plain.state_dict())
    return plain, other


def compare(plain: Block, other: Block, updates: int) -> None:
    for (name, expected), (_, got) in zip(plain.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad, msg=name)
    for name, expected in plain.state_dict().items():
        assert torch.equal(other.state_dict()[name], expected), name
    assert int(other.quantizer.num_updates) == updates


@pytest.mark.parametrize("mode", ["straight_through", "regularize", "rotation"])
@pytest.mark.parametrize("calls", [1, 2])
def test_real_and_fake_then_backward(mode: str, calls: int) -> None:
    """Two regions, both recomputed after the dictionary has moved on."""
    plain, other = pair(mode=mode, calls=calls)
    for _ in range(3):
        real, fake = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
        (plain(real).mean() - plain(fake).square().mean() + commitment_loss(plain)).backward()
        outputs = [checkpoint(other, x, use_reentrant=False) for x in (real, fake)]
        (outputs[0].mean() - outputs[1].square().mean() + commitment_loss(other)).backward()
    compare(plain, other, updates=6 * calls)
    assert commitment_loss(other) == 0


def test_reentrant_with_the_loss_returned() -> None:
    plain, other = pair()
    for _ in range(3):
        real, fake = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
        for net, run in (
            (plain, plain.with_loss),
            (other, lambda x: checkpoint(other.with_loss, x, use_reentrant=True)),
        ):
            (y_real, loss_real), (y_fake, loss_fake) = run(real), run(fake)
            (y_real.mean() - y_fake.square().mean() + loss_real.mean() + loss_fake.mean()).backward()
            assert int(net.quantizer.ema_counts.sum()) > 0
    compare(plain, other, updates=6)


def test_a_stack_in_a_reentrant_checkpoint_says_that_its_loss_is_lost() -> None:
    stack, x = ResidualQuantizer(4, 6, num_levels=2, init="normal"), torch.randn(6, 4, requires_grad=True)
    with pytest.warns(UserWarning, match=r"use_reentrant=True.*quantize\(x\)\.loss"):
        checkpoint(stack, x, use_reentrant=True).sum().backward()
    assert commitment_loss(stack) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint(lambda x: stack.quantize(x)[::2], x, use_reentrant=True)[0].sum().backward()


def test_reentrant_forward_cannot_carry_the_loss_and_says_so() -> None:
    _, block = pair()
    x = torch.randn(6, 4, requires_grad=True)
    with pytest.warns(UserWarning, match=r"use_reentrant=True.*quantize\(x\)\.loss"):
        y = checkpoint(block, x, use_reentrant=True)
    y.sum().backward()
    assert commitment_loss(block) == 0
    assert int(block.quantizer.num_updates) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint(block, x, use_reentrant=True).sum().backward()


def test_a_training_forward_without_grad_is_not_mistaken_for_a_checkpoint() -> None:
    _, block = pair()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        block(torch.randn(6, 4))
    assert int(block.quantizer.num_updates) == 1


class Context:
    """What command line tools and frameworks hand to functions as their first argument, ``ctx``."""


@pytest.mark.parametrize("context", [{}, "a string", Context()], ids=["dict", "string", "object"])
def test_an_argument_called_ctx_is_not_mistaken_for_a_checkpoint(context: object) -> None:
    _, block = pair()

    def step(ctx: object, x: Tensor) -> Tensor:
        return block(x)

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        step(context, torch.randn(6, 4))
    assert not getattr(context, "__dict__", None)


def test_nested_checkpoints() -> None:
    plain, other = pair()
    x = torch.randn(6, 4, requires_grad=True)
    plain(torch.randn(9, 4))
    other.load_state_dict(plain.state_dict())
    for net in (plain, other):
        commitment_loss(net)
        net.zero_grad()

    def inner(x: Tensor) -> Tensor:
        return checkpoint(other, x, use_reentrant=False)

    (plain(x).sum() + plain(x.cos()).sum() + commitment_loss(plain)).backward()
    outputs = [checkpoint(inner, y, use_reentrant=False) for y in (x, x.cos())]
    (sum(y.sum() for y in outputs) + commitment_loss(other)).backward()
    compare(plain, other, updates=3)


def test_two_backward_passes_through_one_region() -> None:
    plain, other = pair()
    x = torch.randn(6, 4, requires_grad=True)
    for net, y in ((plain, plain(x)), (other, checkpoint(other, x, use_reentrant=False))):
        y.sum().backward(retain_graph=True)
        net.quantizer.codebook.add_(1.0)
        y.square().sum().backward()
    for expected, got in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad)
    assert int(other.quantizer.num_updates) == 1


def test_under_frozen_and_in_eval() -> None:
    plain, other = pair()
    plain(torch.randn(9, 4))
    other.load_state_dict(plain.state_dict())
    x = torch.randn(6, 4, requires_grad=True)
    for training in (True, False):
        for net in (plain, other):
            net.train(training)
            net.zero_grad()
        with frozen(plain), frozen(other):
            (plain(x).sum() + commitment_loss(plain)).backward()
            (checkpoint(other, x, use_reentrant=False).sum() + commitment_loss(other)).backward()
        compare(plain, other, updates=1)


def test_stored_dictionaries_die_with_the_graph() -> None:
    import gc
    import weakref

    from fq_toolkit.layers.quantizer import checkpointing

    _, block = pair()
    kept: list[weakref.ref] = []
    original = checkpointing._store

    def watch(owner: object, layer: nn.Module, snapshot: checkpointing.Snapshot) -> None:
        kept.append(weakref.ref(snapshot.codebook))
        original(owner, layer, snapshot)

    checkpointing._store = watch
    try:
        y = checkpoint(block, torch.randn(6, 4, requires_grad=True), use_reentrant=False)
    finally:
        checkpointing._store = original
    loss = y.sum() + commitment_loss(block)
    assert kept
    assert kept[0]() is not None
    loss.backward()
    del loss, y
    gc.collect()
    assert kept[0]() is None


def test_residual_stack_with_dropout() -> None:
    torch.manual_seed(0)
    plain, other = (ResidualQuantizer(4, 6, num_levels=3, dropout=True, init="normal") for _ in range(2))
    other.load_state_dict(plain.state_dict())
    x = torch.randn(16, 4)
    gradients = []
    for net, run in ((plain, plain), (other, lambda x: checkpoint(other, x, use_reentrant=False))):
        torch.manual_seed(5)
        leaf = x.clone().requires_grad_()
        (run(leaf).square().sum() + commitment_loss(net)).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)
    for name, expected in plain.state_dict().items():
        assert torch.equal(other.state_dict()[name], expected), name


def test_a_repetition_of_an_unknown_forward_is_told() -> None:
    """As where somebody's checkpointing, or that of a later torch, is not recognised."""
    layer = FeatureQuantizer(4, 8)
    layer(torch.randn(6, 4))
    before = layer.codebook.clone()
    x = torch.randn(6, 4, requires_grad=True)
    x.register_hook(lambda grad: grad + 0 * layer(torch.randn(6, 4)))
    with pytest.warns(UserWarning, match="no forward is known that it would repeat"):
        x.sum().backward()
    assert torch.equal(layer.codebook, before)
    layer.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x.sum().backward()
