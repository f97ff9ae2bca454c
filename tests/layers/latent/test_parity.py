"""The original's arithmetic: logits, gradient of the latent and greedy tokens, in all three modes."""

import pytest
import torch

from fq_toolkit import inject_latent
from fq_toolkit.layers.latent.original_checkpoints import load_original_decoder
from tests.layers.latent.oracle import SIZES, gpt2, original_logits, original_state

MODES = ["memory", "embedding", "both"]
ATTENTIONS = ["sdpa", "eager"]


def converted(mode: str, attention: str = "sdpa") -> tuple[object, dict[str, torch.Tensor]]:
    state = original_state()
    model = inject_latent(gpt2(attn_implementation=attention), mode=mode, latent_size=SIZES["latent"])
    load_original_decoder(model, state)
    return model, state


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("mode", MODES)
def test_logits_and_gradient_of_the_latent_are_those_of_the_original(mode: str, attention: str) -> None:
    model, state = converted(mode, attention)
    ids = torch.randint(3, SIZES["vocabulary"], (3, 9))
    ours, theirs = (torch.randn(3, SIZES["latent"]).requires_grad_() for _ in range(2))
    with torch.no_grad():
        theirs.copy_(ours)
    weights = torch.randn(3, 9, SIZES["vocabulary"])
    logits = model(ids, latent=ours).logits
    expected = original_logits(state, ids, theirs, mode)
    assert float((logits - expected).detach().abs().max()) < 1e-5
    (logits * weights).sum().backward()
    (expected * weights).sum().backward()
    assert float((ours.grad - theirs.grad).abs().max()) < 1e-5 * max(1.0, float(theirs.grad.abs().max()))


@pytest.mark.parametrize("mode", MODES)
def test_logits_equal_the_original_in_float64(mode: str) -> None:
    model, state = converted(mode)
    model.double()
    ids, z = (
        torch.randint(3, SIZES["vocabulary"], (2, 7)),
        torch.randn(2, SIZES["latent"], dtype=torch.float64),
    )
    expected = original_logits({name: value.double() for name, value in state.items()}, ids, z, mode)
    torch.testing.assert_close(model(ids, latent=z).logits, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("mode", MODES)
def test_greedy_tokens_are_those_of_the_original(mode: str) -> None:
    model, state = converted(mode)
    z = torch.randn(3, SIZES["latent"])
    tokens = torch.ones(3, 1, dtype=torch.long)
    for _ in range(12):
        tokens = torch.cat([tokens, original_logits(state, tokens, z, mode)[:, -1:].argmax(-1)], 1)
    generated = model.generate(latent=z, max_new_tokens=12, do_sample=False)
    assert torch.equal(generated, tokens)
    assert len({tuple(row) for row in tokens.tolist()}) > 1, "the latents must lead to different texts"


@pytest.mark.parametrize("mode", MODES)
def test_positions_left_for_text(mode: str) -> None:
    model, _ = converted(mode)
    room = SIZES["positions"] - (mode != "embedding")
    z = torch.zeros(1, SIZES["latent"])
    assert model(torch.ones(1, room, dtype=torch.long), latent=z).logits.shape[1] == room
    with pytest.raises(ValueError, match=f"{room + 1} tokens is too long.*{room} of them"):
        model(torch.ones(1, room + 1, dtype=torch.long), latent=z)


def test_start_is_normal_with_the_given_deviation() -> None:
    model = inject_latent(gpt2(), mode="both", latent_size=512)
    weights = torch.cat([p.flatten() for p in model.latent_injection.parameters()])
    assert abs(float(weights.std()) - 0.02) < 0.001
    assert all("bias" not in name for name, _ in model.latent_injection.named_parameters())


@pytest.mark.parametrize(
    "settings", [{"reorder_and_upcast_attn": True}, {"scale_attn_by_inverse_layer_idx": True}]
)
def test_eager_options_of_gpt2_stay_in_force(settings: dict[str, bool]) -> None:
    ids, z = torch.randint(3, 40, (2, 6)), torch.randn(2, SIZES["latent"])
    plain = gpt2(attn_implementation="eager", **settings)
    before = plain(ids).logits
    model = inject_latent(plain, latent_size=SIZES["latent"], init_std=1.0)
    assert torch.equal(model(ids).logits, before)
    sdpa = inject_latent(gpt2(attn_implementation="sdpa", **settings), latent_size=SIZES["latent"])
    sdpa.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(ids, latent=z).logits, sdpa(ids, latent=z).logits, rtol=1e-5, atol=1e-5)
