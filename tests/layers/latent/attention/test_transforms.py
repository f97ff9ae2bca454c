"""`torch.func` and forward derivatives see through an injected model as they do through the plain one."""

import pytest
import torch
from torch.autograd import forward_ad
from transformers import GPT2Config, GPT2LMHeadModel

from fq_toolkit import inject_latent

LATENT_SIZE = 4


def logits_of(implementation, length, mode="memory"):
    """Logits of the last token as a function of one latent (4,)."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=20,
        n_layer=2,
        n_embd=16,
        n_head=2,
        initializer_range=0.3,
        attn_implementation=implementation,
    )
    model = inject_latent(GPT2LMHeadModel(config), mode, LATENT_SIZE, init_std=1.0).eval()
    tokens = torch.randint(0, 20, (1, length))
    return lambda latent: model(tokens, latent=latent[None], use_cache=False).logits[0, -1]


def jacobian(function, point):
    """By plain backward passes, one for each output."""
    point = point.clone().requires_grad_()
    rows = [torch.autograd.grad(output, point, retain_graph=True)[0] for output in function(point)]
    return torch.stack(rows)


@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("mode", ["memory", "both"])
@pytest.mark.parametrize("grad", [True, False])
def test_reverse_jacobians_and_batches(implementation, length, mode, grad):
    function, points = logits_of(implementation, length, mode), torch.randn(3, LATENT_SIZE)
    wanted = torch.stack([jacobian(function, point) for point in points])
    assert wanted.abs().max() > 0.1
    with torch.set_grad_enabled(grad):
        one = torch.func.jacrev(function)(points[0])
        every = torch.func.vmap(torch.func.jacrev(function))(points)
        values = torch.func.vmap(function)(points)
        each = torch.stack([function(point) for point in points])
    torch.testing.assert_close(one, wanted[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(every, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(values, each, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("grad", [True, False])
def test_forward_derivatives(length, grad):
    function, point = logits_of("eager", length), torch.randn(LATENT_SIZE)
    wanted = jacobian(function, point)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(torch.func.jacfwd(function)(point), wanted, rtol=1e-4, atol=1e-5)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(point, torch.ones(LATENT_SIZE))
            tangent = forward_ad.unpack_dual(function(dual)).tangent
    torch.testing.assert_close(tangent, wanted.sum(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 5])
def test_sdpa_refuses_forward_derivatives_and_never_loses_them(length):
    """Torch's own kernel has none: an error, as for the plain model, and not a derivative of zero."""
    function = logits_of("sdpa", length)
    with pytest.raises(NotImplementedError, match="forward AD"), forward_ad.dual_level():
        function(forward_ad.make_dual(torch.zeros(LATENT_SIZE), torch.ones(LATENT_SIZE)))
