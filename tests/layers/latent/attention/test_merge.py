"""Slots merged in beside the text against slots in front of it, and against softmax written out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from fq_toolkit import inject_latent
from fq_toolkit.kernels import native
from fq_toolkit.layers.latent.attention import attend
from fq_toolkit.layers.latent.attention.merge import merge_slots


def _written_out(query, key, value, slots, causal, scale):
    """Softmax over slots and text, (B, Q, heads, head_dim)."""
    batch, _, length, _ = query.shape
    keys, values = (
        torch.cat([slot.expand(batch, -1, -1, -1), text], dim=2)
        for slot, text in zip(slots, (key, value), strict=True)
    )
    scores = query @ keys.transpose(-1, -2) * scale
    count = slots[0].shape[2]
    if causal:
        visible = torch.ones(length, length, dtype=torch.bool).tril()
        hidden = torch.nn.functional.pad(~visible, (count, 0))
        scores = scores.masked_fill(hidden, -torch.inf)
    return (scores.softmax(-1) @ values).transpose(1, 2)


sizes = st.tuples(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.sampled_from([4, 8, 16]), st.integers(1, 3)
)


@given(sizes, st.booleans(), st.booleans(), st.floats(0.05, 3.0), st.integers(0, 10_000))
def test_output_and_gradients_are_those_of_one_softmax(size, causal, shared_batch, scale, seed):
    batch, heads, length, dim, count = size
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    query, key, value = (randn(batch, heads, length, dim) for _ in range(3))
    slots = tuple(randn(1 if shared_batch else batch, heads, count, dim) for _ in range(2))
    inputs = (query, key, value, *slots)
    got = merge_slots(query, key, value, slots, causal=causal, scale=scale)
    wanted = _written_out(query, key, value, slots, causal, scale)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
    grad = torch.randn(got.shape, generator=generator, dtype=torch.float64)
    for mine, theirs in zip(
        torch.autograd.grad(got, inputs, grad), torch.autograd.grad(wanted, inputs, grad), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("gain", [1.0, 1e4])
def test_scores_of_any_size_are_safe(gain):
    torch.manual_seed(0)
    query, key, value, slot = (torch.randn(2, 2, n, 8) for n in (5, 5, 5, 1))
    for sign in (1, -1):
        slots = (sign * gain * slot, slot)
        got = merge_slots(query, key, value, slots, causal=True, scale=None)
        wanted = _written_out(query, key, value, slots, True, 8**-0.5)
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@given(sizes, st.booleans(), st.floats(0.05, 3.0), st.booleans(), st.booleans())
def test_one_more_token(size, shared_batch, scale, float_slots, tied):
    batch, heads, length, dim, count = size
    query, key, value = (torch.randn(batch, heads, n, dim, dtype=torch.float64) for n in (1, length, length))
    of_key, of_value = (
        torch.randn(1 if shared_batch else batch, heads, count, dim).double() for _ in range(2)
    )
    slots = (of_key, of_key if tied else of_value)
    given_slots = tuple(slot.float() for slot in slots) if float_slots else slots
    got = merge_slots(query, key, value, given_slots, causal=False, scale=scale)
    wanted = _written_out(query, key, value, slots, False, scale)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-11)
    assert got.is_contiguous()


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=30, n_positions=32)
    return inject_latent(GPT2LMHeadModel(config), latent_size=4, init_std=1.0)


def _calls(monkeypatch):
    """How often slots are merged from now on."""
    calls = []

    def counted(*args, **kwargs):
        calls.append(1)
        return merge_slots(*args, **kwargs)

    monkeypatch.setattr(attend, "merge_slots", counted)
    return calls


def test_which_way_is_taken(model, monkeypatch):
    calls = _calls(monkeypatch)
    ids, z = torch.randint(0, 30, (2, 5)), torch.randn(2, 4)

    def merged(**options):
        calls.clear()
        model(ids, latent=z, **options)
        return len(calls)

    model.eval()
    assert merged() == 2  # one per layer
    assert merged(attention_mask=torch.tensor([[0, 1, 1, 1, 1], [1] * 5])) == 0
    assert merged(attention_mask=torch.ones(2, 5)) == 2
    with torch.autocast("cpu", torch.bfloat16):
        assert merged() == 0
    model.train()
    assert merged() == 0  # dropout has to hit slots and text alike
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    assert merged() == 2
    model.set_attn_implementation("eager")
    assert merged() == 0


def test_cached_tokens_say_the_same_in_every_way(model, monkeypatch):
    calls, decoded = _calls(monkeypatch), []
    attend_one = attend.attend_one
    monkeypatch.setattr(
        attend,
        "attend_one",
        lambda *args, **kwargs: decoded.append(1) or attend_one(*args, **kwargs),
    )
    model.eval()
    ids, z = torch.randint(0, 30, (2, 6)), torch.randn(2, 4)
    options = {"latent": z, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    tokens = model.generate(ids, **options)
    if native.problem() is None:
        assert (len(calls), len(decoded)) == (2, 2 * 4)  # in each layer: the prompt, then a token at a time
    monkeypatch.setattr(attend, "can_decode", lambda *_: False)
    calls.clear()
    assert torch.equal(model.generate(ids, **options), tokens)
    assert len(calls) == 2 * 5
    monkeypatch.setattr(attend, "can_merge", lambda *_: False)
    assert torch.equal(model.generate(ids, **options), tokens)


def test_both_ways_agree_in_a_model(model, monkeypatch):
    model.eval()
    ids, z = torch.randint(0, 30, (3, 7)), torch.randn(3, 4, requires_grad=True)
    merged = model(ids, latent=z, labels=ids)
    (of_merged,) = torch.autograd.grad(merged.loss, z)
    monkeypatch.setattr(attend, "can_merge", lambda *_: False)
    in_front = model(ids, latent=z, labels=ids)
    (of_front,) = torch.autograd.grad(in_front.loss, z)
    torch.testing.assert_close(merged.logits, in_front.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(of_merged, of_front, rtol=1e-4, atol=1e-6)


def test_a_step_of_training_keeps_no_copy_of_keys_and_values(model):
    """What autograd keeps is as large as without a latent, but for what belongs to a slot."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.train()
    ids, z = torch.randint(0, 30, (4, 24)), torch.randn(4, 4)

    def kept(**latent):
        storages = {}

        def pack(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(ids, labels=ids, use_cache=False, **latent).loss
        total = sum(storages.values())
        del loss
        return total

    slots = 4 * 4 * 2 * 16  # float32, texts, layers, width
    scores = 4 * 4 * 2 * 2 * 24  # a log-sum-exp per head and token is kept with and without
    assert kept(latent=z) <= kept() + slots + scores + model.latent_injection.memory.weight.nbytes
