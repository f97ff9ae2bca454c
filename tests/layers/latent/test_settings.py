"""Shapes of latents, slots, projectors, layers, dropout; and the errors."""

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from fq_toolkit import inject_latent, remove_latent
from fq_toolkit.layers.latent.spec import LatentSpec
from tests.layers.latent.oracle import build, gpt2

NZ = 6
IDS = torch.randint(3, 40, (4, 5), generator=torch.Generator().manual_seed(2))


def injected(**options: Any) -> Any:
    return inject_latent(gpt2(), latent_size=NZ, **{"init_std": 0.7, **options})


@pytest.mark.parametrize("mode", ["memory", "embedding", "both"])
def test_one_latent_for_all_is_the_same_for_each(mode: str) -> None:
    model, z = injected(mode=mode), torch.randn(1, NZ)
    torch.testing.assert_close(
        model(IDS, latent=z).logits, model(IDS, latent=z.expand(4, -1)).logits, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("projector", ["linear", "mlp"])
@pytest.mark.parametrize("share_kv", [True, False])
def test_latents_per_slot_and_per_layer_agree_with_one_for_all(projector: str, share_kv: bool) -> None:
    model = injected(slots=2, share_kv=share_kv, projector=projector)
    z = torch.randn(4, NZ)
    expected = model(IDS, latent=z).logits
    for shape in [(4, 2, NZ), (4, 3, NZ), (4, 3, 2, NZ)]:
        spread = z.view(4, *[1] * (len(shape) - 2), NZ).expand(shape)
        torch.testing.assert_close(model(IDS, latent=spread).logits, expected, rtol=1e-5, atol=1e-5)


def test_each_latent_of_a_layer_or_slot_goes_there_and_nowhere_else() -> None:
    model = injected(slots=2, share_kv=False)
    z = torch.randn(4, 3, 2, NZ)
    before = model.latent_injection(z).memory
    for layer in range(3):
        for slot in range(2):
            changed = z.clone()
            changed[:, layer, slot] += 1
            after = model.latent_injection(changed).memory
            for i, (old, new) in enumerate(zip(before, after, strict=True)):
                for part in range(2):
                    differs = (old[part] != new[part]).any(-1).any(1)  # (B, slots)
                    expected = torch.zeros(4, 2, dtype=torch.bool)
                    expected[:, slot] = i == layer
                    assert torch.equal(differs, expected)


@pytest.mark.parametrize("shape", [(4, NZ), (4, 2, NZ), (4, 3, NZ), (4, 3, 2, NZ)])
@pytest.mark.parametrize("share_kv", [True, False])
def test_slots_are_contiguous_as_each_token_reads_them(shape: tuple[int, ...], share_kv: bool) -> None:
    model = injected(slots=2, share_kv=share_kv)
    assert len(model.latent_spec.layers) == 3
    for key, value in model.latent_injection(torch.randn(shape)).memory:
        assert key.shape == value.shape
        assert (key.shape[0], key.shape[2]) == (4, 2)
        assert key.is_contiguous()
        assert value.is_contiguous()
        assert (key is value) is share_kv


def test_gradients_stay_within_a_sample() -> None:
    model, z = injected(mode="both"), torch.randn(4, NZ, requires_grad=True)
    (grad,) = torch.autograd.grad(model(IDS, latent=z).logits[2].sum(), z)
    assert (grad[2] != 0).all()
    assert (grad[[0, 1, 3]] == 0).all()


def test_separate_keys_and_values_are_separate() -> None:
    for share_kv in (True, False):
        key, value = injected(share_kv=share_kv).latent_injection(torch.randn(2, NZ)).memory[0]
        assert torch.equal(key, value) is share_kv


def test_only_the_chosen_layers_read_memory() -> None:
    model = injected(layers=[-1, 0])
    assert model.latent_spec.layers == (0, 2)
    assert sorted(site.name for site in model.latent_spec.sites) == [
        "transformer.h.0.attn",
        "transformer.h.2.attn",
    ]
    model, z = injected(layers=[2]), torch.randn(4, NZ)
    hidden = model(IDS, latent=z, output_hidden_states=True).hidden_states
    positions = torch.arange(1, 6)[None]
    plain = model(IDS, position_ids=positions, output_hidden_states=True).hidden_states
    assert torch.equal(hidden[2], plain[2])
    assert not torch.equal(hidden[3], plain[3])


def test_a_projector_of_the_callers_own() -> None:
    own = nn.Sequential(nn.Linear(NZ, 8), nn.SiLU(), nn.Linear(8, 3 * 16))
    model = injected(projector=own)
    z = torch.randn(4, NZ)
    assert torch.equal(model.latent_injection(z).memory[1][0], own(z).view(4, 3, 2, 1, 8)[:, 1])
    with pytest.raises(ValueError, match=r"to \(1, 7\), but this model needs \(1, 48\)"):
        injected(projector=nn.Linear(NZ, 7))


def test_latent_dropout_gives_some_samples_the_null_latent_in_training_only() -> None:
    model, z = injected(latent_dropout=0.5), torch.randn(64, NZ)
    assert torch.equal(model.latent_injection(z).memory[0][0], model.latent_injection(z).memory[0][0])
    model.train()
    key = model.latent_injection(z).memory[0][0]
    dropped = (key == 0).flatten(1).all(1)
    assert 10 < int(dropped.sum()) < 54
    model.eval()
    assert torch.equal(key[~dropped], model.latent_injection(z).memory[0][0][~dropped])


def test_status_is_one_line_with_everything() -> None:
    model = injected(slots=2, layers=[0, 1])
    total = sum(p.numel() for p in model.parameters())
    assert model.latent_status() == (
        f"latent: mode=memory, latent_size=6, slots=2, layers=2/3, trainable=384 of {total:,} parameters "
        f"({38400 / total:.2f} %)"
    )
    assert "slots" not in injected(mode="embedding").latent_status()


def test_every_layer_is_proved_to_read_its_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    from fq_toolkit.layers.latent import probing

    def deaf(
        base: Any, module: Any, query: Any, key: Any, value: Any, mask: Any, slots: Any, **options: Any
    ) -> Any:
        return base(
            module, query, key, value, None if mask is None else mask[..., slots[0].shape[2] :], **options
        )

    monkeypatch.setattr(probing, "attend_with_slots", deaf)
    plain = gpt2()
    with pytest.raises(
        ValueError, match=r"do not read their slot: transformer\.h\.0\.attn, transformer\.h\.1"
    ):
        inject_latent(plain)
    assert type(plain) is transformers.GPT2LMHeadModel
    assert plain.config._attn_implementation == "sdpa"


def test_the_probe_leaves_the_model_and_the_random_numbers_alone() -> None:
    plain = gpt2().train()
    state = {name: value.clone() for name, value in plain.state_dict().items()}
    torch.manual_seed(3)
    inject_latent(plain, init_std=0.0)
    assert plain.training
    assert all(torch.equal(value, state[name]) for name, value in plain.state_dict().items() if name in state)


@pytest.mark.parametrize(
    ("latent", "error", "message"),
    [
        (torch.randn(4, 7), ValueError, r"\(B, 6\).*got \(4, 7\)"),
        (torch.randn(6), ValueError, r"got \(6,\)"),
        (torch.randn(4, 5, 6), ValueError, r"\(B, slots=2, 6\), \(B, layers=3, 6\).*got \(4, 5, 6\)"),
        (torch.randn(4, 2, 3, 6), ValueError, r"got \(4, 2, 3, 6\)"),
        (torch.randn(3, 6), ValueError, r"latent has 3 row\(s\) and the text 4"),
        (torch.ones(4, 6, dtype=torch.long), TypeError, r"floating-point.*torch\.int64"),
        ([0.0] * 6, TypeError, r"floating-point.*list"),
    ],
)
def test_a_latent_that_does_not_fit(latent: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        injected(slots=2)(IDS, latent=latent)


def test_a_latent_per_slot_or_layer_is_for_memory_alone_and_unambiguous() -> None:
    with pytest.raises(ValueError, match=r"mode='both'.*\(B, 6\), got \(4, 3, 6\)"):
        injected(mode="both")(IDS, latent=torch.randn(4, 3, NZ))
    with pytest.raises(ValueError, match=r"one per slot or one per layer, as both are 3"):
        injected(slots=3)(IDS, latent=torch.randn(4, 3, NZ))


@pytest.mark.parametrize("mode", ["memory", "embedding"])
def test_neither_or_both_of_ids_and_embeddings(mode: str) -> None:
    model, z = injected(mode=mode), torch.randn(4, NZ)
    with pytest.raises(ValueError, match=r"either input_ids or inputs_embeds.*got neither"):
        model(latent=z)
    with pytest.raises(ValueError, match="got both"):
        model(IDS, inputs_embeds=torch.randn(4, 5, 16), latent=z)
    with pytest.raises(ValueError, match=r"either decoder_input_ids or decoder_inputs_embeds.*or labels"):
        inject_latent(build("bart"), mode, NZ)(IDS, latent=z)


def test_labels_alone_are_enough_for_a_decoder_with_an_encoder() -> None:
    for mode in ("memory", "both"):
        model = inject_latent(build("t5"), mode, NZ)
        z, labels = torch.randn(4, NZ), torch.randint(3, 40, (4, 6))
        shifted = model.prepare_decoder_input_ids_from_labels(labels=labels)
        given = model(IDS, decoder_input_ids=shifted, labels=labels, latent=z)
        assert torch.equal(model(IDS, labels=labels, latent=z).loss, given.loss)


def test_too_long_a_text_while_decoding() -> None:
    model = injected(slots=2)
    with pytest.raises(ValueError, match="31 tokens is too long: the model has 32 positions, and 30 of them"):
        model.generate(latent=torch.randn(1, NZ), max_new_tokens=40, do_sample=False)
    bart = inject_latent(build("bart"), "embedding", NZ)
    with pytest.raises(ValueError, match="65 tokens is too long"):
        bart(IDS, decoder_input_ids=torch.ones(4, 65, dtype=torch.long), latent=torch.randn(4, NZ))


def test_double_injection_and_removal_without_injection() -> None:
    model = injected()
    with pytest.raises(ValueError, match=r"injected into this model already.*remove_latent"):
        inject_latent(model)
    with pytest.raises(ValueError, match="no latent was injected into this GPT2LMHeadModel"):
        remove_latent(gpt2())


@pytest.mark.parametrize("model", [nn.Linear(2, 2), "gpt2"], ids=["module", "name"])
def test_not_a_model_of_transformers(model: Any) -> None:
    with pytest.raises(TypeError, match="must be a model of transformers"):
        inject_latent(model)


def test_models_without_a_language_modelling_head() -> None:
    with pytest.raises(ValueError, match="GPT2Model does not generate text"):
        inject_latent(gpt2().transformer)
    with pytest.raises(ValueError, match="BertForMaskedLM"):
        inject_latent(transformers.BertForMaskedLM(transformers.BertConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=40
        )))  # fmt: skip


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mode": "prefix"}, ValueError, "mode must be one of 'memory', 'embedding', 'both'"),
        ({"latent_size": 0}, ValueError, "latent_size must be at least 1"),
        ({"slots": 1.5}, TypeError, "slots must be an integer"),
        ({"projector": "deep"}, ValueError, "projector must be one of 'linear', 'mlp'"),
        ({"init_std": -1.0}, ValueError, "init_std must be in"),
        ({"latent_dropout": 1.0}, ValueError, "latent_dropout must be in"),
        ({"share_kv": 1}, TypeError, "share_kv must be True or False"),
        ({"layers": [3]}, ValueError, "layers contains 3, but the model has layers 0 to 2"),
        ({"layers": []}, ValueError, "layers is empty"),
        ({"layers": [0, -3]}, ValueError, "layers names a layer twice"),
        ({"layers": ["h.0"]}, TypeError, "layers must be a list of integers"),
        ({"mode": "embedding", "layers": [0]}, ValueError, "leave it out"),
    ],
)
def test_settings_out_of_range(options: dict[str, Any], error: type[Exception], message: str) -> None:
    model = gpt2()
    with pytest.raises(error, match=message):
        inject_latent(model, **options)
    assert type(model) is transformers.GPT2LMHeadModel
    assert "latent_injection" not in model.config.to_dict()


def test_a_latent_must_not_change_in_the_middle_of_a_cached_text() -> None:
    for mode in ("memory", "embedding"):
        model, z = injected(mode=mode), torch.randn(4, NZ)
        with torch.no_grad():
            cache = model(IDS, latent=z, use_cache=True).past_key_values
            step = IDS[:, :1]
            model(step, latent=z.clone(), past_key_values=cache)
            with pytest.raises(ValueError, match="latent has changed in the middle"):
                model(step, latent=z + 1, past_key_values=cache)
            with pytest.raises(ValueError, match="begun with a latent and is continued without"):
                model(step, past_key_values=cache)
            z += 1
            with pytest.raises(ValueError, match="latent has changed in the middle"):
                model(step, latent=z, past_key_values=cache)
            plain = model(IDS, use_cache=True).past_key_values
            with pytest.raises(ValueError, match="begun without a latent and is continued with"):
                model(step, latent=z, past_key_values=plain)


def test_a_cache_that_is_reset_takes_another_latent() -> None:
    model, z = injected(), torch.randn(4, NZ)
    cache = transformers.StaticCache(model.config, max_cache_len=16)
    with torch.no_grad():
        model(IDS, latent=z, past_key_values=cache)
        cache.reset()
        other = model(IDS, latent=-z, past_key_values=cache).logits
    torch.testing.assert_close(other, model(IDS, latent=-z).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["memory", "embedding"])
def test_a_cache_that_is_reset_knows_nothing_of_the_weights_before(mode: str) -> None:
    """An evaluation that keeps its cache and its latent sees what training has done in between."""
    model, z = injected(mode=mode), torch.randn(4, NZ)
    for cache in (
        transformers.StaticCache(model.config, max_cache_len=16),
        transformers.DynamicCache(config=model.config),
    ):
        with torch.no_grad():
            model(IDS, latent=z, past_key_values=cache)
            cache.reset()
            if cache.get_seq_length():  # transformers 5.17 fills dynamic ones with zeros
                continue
            for parameter in model.latent_injection.parameters():
                parameter.data.mul_(-2)  # as optimizers and averages do, without a new version
            again = model(IDS, latent=z, past_key_values=cache).logits
            expected = model(IDS, latent=z, use_cache=False).logits
        torch.testing.assert_close(again, expected, rtol=1e-5, atol=1e-5)


def test_a_cache_that_is_reset_goes_on_without_a_latent() -> None:
    model, z = injected(), torch.randn(4, NZ)
    cache = transformers.StaticCache(model.config, max_cache_len=16)
    with torch.no_grad():
        model(IDS, latent=z, past_key_values=cache)
        cache.reset()
        for token in IDS.split(1, 1):
            last = model(token, past_key_values=cache).logits[:, -1]
        torch.testing.assert_close(last, model(IDS).logits[:, -1], rtol=1e-5, atol=1e-5)


def test_copies_of_a_cached_text_keep_its_latent() -> None:
    """Rows may be repeated or dropped together with their latents, and none may get another."""
    model, z = injected(), torch.randn(4, NZ)
    with torch.no_grad():
        cache = model(IDS, latent=z, use_cache=True).past_key_values
        cache.batch_repeat_interleave(2)
        copies, step = z.repeat_interleave(2, 0), IDS.repeat_interleave(2, 0)[:, :1]
        model(step, latent=copies, past_key_values=cache)
        cache.batch_select_indices(torch.tensor([0, 3]))
        with pytest.raises(ValueError, match="latent has changed in the middle"):
            model(step[[0, 3]], latent=torch.randn(2, NZ), past_key_values=cache)
        model(step[[0, 3]], latent=copies[[0, 3]], past_key_values=cache)


def test_latents_that_are_not_finite_are_refused_where_asked() -> None:
    z = torch.randn(4, NZ)
    z[2, 1] = float("nan")
    with pytest.raises(ValueError, match=r"NaN or an infinity in row\(s\) \[2\]"):
        injected(check_finite=True)(IDS, latent=z)
    logits = injected()(IDS, latent=z).logits
    assert torch.isfinite(logits[[0, 1, 3]]).all()


def test_generation_says_what_is_missing() -> None:
    model = injected()
    with pytest.raises(ValueError, match=r"latent has 3 rows and there are 4 prompt"):
        model.generate(IDS, latent=torch.randn(3, NZ))
    model.generation_config.bos_token_id = model.config.bos_token_id = None
    with pytest.raises(ValueError, match="no BOS token to start from"):
        model.generate(latent=torch.randn(3, NZ))


def test_attention_implementations() -> None:
    model, z = injected(), torch.randn(4, NZ)
    before = model(IDS, latent=z).logits
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "latent_eager"
    eager = model(IDS, latent=z, output_attentions=True)
    torch.testing.assert_close(eager.logits, before, rtol=1e-5, atol=1e-5)
    assert eager.attentions[0].shape == (4, 2, 5, 6)
    model.set_attn_implementation({"": "sdpa"})
    assert torch.equal(model(IDS, latent=z).logits, before)
    with pytest.raises(
        ValueError, match="'flex_attention' has no room for memory slots; use one of eager, sdpa"
    ):
        model.set_attn_implementation("flex_attention")
    assert torch.equal(model(IDS, latent=z).logits, before)
    model.config._attn_implementation = "sdpa"  # behind our back
    assert torch.equal(model(IDS, latent=z).logits, before)


def test_settings_survive_a_round_trip_and_strangers_are_refused() -> None:
    spec = injected(slots=2, layers=[1]).latent_spec
    assert LatentSpec.from_dict(spec.to_dict()) == spec
    with pytest.raises(ValueError, match="unknown setting 'slot'; the nearest known one is 'slots'"):
        LatentSpec.from_dict({**spec.to_dict(), "slot": 1})
    with pytest.raises(ValueError, match="has version 9, expected 1"):
        LatentSpec.from_dict({**spec.to_dict(), "version": 9})
    with pytest.raises(ValueError, match="lacks slots"):
        LatentSpec.from_dict({key: value for key, value in spec.to_dict().items() if key != "slots"})


def test_a_model_with_another_attention_implementation_is_refused_untouched() -> None:
    model = build("llama")
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(
        ValueError, match=r"'flex_attention' has no room for memory slots.*set_attn_implementation"
    ):
        inject_latent(model)
    assert type(model) is transformers.LlamaForCausalLM
    assert model.config._attn_implementation == "flex_attention"
    inject_latent(model, "embedding")


def test_gradient_reaches_a_latent_whose_cache_was_begun_without_one() -> None:
    model, z = injected(), torch.randn(4, NZ, requires_grad=True)
    with torch.no_grad():
        cache = model(IDS, latent=z, use_cache=True).past_key_values
    model(IDS[:, :1], latent=z, past_key_values=cache).logits.sum().backward()
    assert z.grad is not None
    assert (z.grad != 0).any()
