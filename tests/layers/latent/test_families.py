"""Families of decoders: memory where it works, against two routes of its own; embeddings where it cannot."""

import math
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from fq_toolkit import inject_latent
from fq_toolkit.layers.latent.attention import attend
from fq_toolkit.layers.latent.attention.attend import TAG
from tests.layers.latent.oracle import (
    DECODERS,
    ENCODER_DECODERS,
    FAMILIES,
    NEED_TOKENS,
    SMALL,
    WITHOUT_MEMORY,
    build,
)

NZ = 5


def injected(family: str, attention: str | None = None, **options: Any) -> Any:
    return inject_latent(build(family, attention), latent_size=NZ, **{"init_std": 1.0, **options})


def encoder_inputs(model: Any, batch: int) -> dict[str, Tensor]:
    if not model.config.is_encoder_decoder:
        return {}
    return {"input_ids": torch.randint(3, 40, (batch, 4), generator=torch.Generator().manual_seed(1))}


def logits(model: Any, ids: Tensor, **options: Any) -> Tensor:
    name = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
    given = {**encoder_inputs(model, ids.shape[0]), name: ids}
    with torch.no_grad():
        return model(**given, **options).logits


def text_masks(model: Any, length: int, slots: int) -> Any:
    """4-D masks written by hand: slots visible to all, text causal, and within the window if there is one."""
    rows, columns = torch.arange(length)[:, None], torch.arange(length)[None]
    causal = columns <= rows
    window = getattr(model.config, "sliding_window", None)

    def mask(visible: Tensor) -> Tensor:
        full = torch.cat([torch.ones(length, slots, dtype=torch.bool), visible], 1)[None, None]
        return full if model.config._attn_implementation.endswith("sdpa") else (~full).float() * -1e30

    kinds = set(getattr(model.config, "layer_types", None) or [])
    if "sliding_attention" in kinds:
        return {
            "full_attention": mask(causal),
            "sliding_attention": mask(causal & (columns > rows - window)),
        }
    return mask(causal & (columns > rows - window) if model.config.model_type == "mistral" else causal)


@pytest.mark.parametrize("family", DECODERS)
def test_memory_equals_a_cache_that_was_filled_by_hand(family: str) -> None:
    """With masks and positions written out, a cache that begins with the slots is the same arithmetic."""
    model = injected(family, slots=2, share_kv=False)
    ids, z = torch.randint(3, 40, (2, 9)), torch.randn(2, NZ)
    ours = logits(model, ids, latent=z)
    cache = transformers.DynamicCache()
    with torch.no_grad():
        for layer, (key, value) in enumerate(model.latent_injection(z).memory):
            cache.update(key.contiguous(), value.contiguous(), layer)
    first = {"gpt2": 2, "opt": 2, "roberta": 3}.get(family, 0)
    positions = torch.arange(9)[None] + first
    by_hand = logits(
        model, ids, past_key_values=cache, attention_mask=text_masks(model, 9, 2), position_ids=positions
    )
    torch.testing.assert_close(ours, by_hand, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours, logits(model, ids), atol=1e-2), "the latent has no effect"


@pytest.mark.parametrize("mode", ["memory", "embedding"])
@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "roberta"])
def test_a_latent_that_nobody_sees_moves_learned_positions_and_nothing_else(
    family: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hidden slots, or zeros in embeddings, are the plain model with its table of positions moved up."""
    monkeypatch.setattr(attend, "pad_mask", lambda mask, n: F.pad(mask, (n, 0), value=False))
    plain, slots = build(family, "sdpa"), 2 if mode == "memory" else 0
    model = inject_latent(build(family, "sdpa"), mode=mode, latent_size=NZ, init_std=1.0, slots=2)
    for name, module in plain.named_modules():
        if name.rpartition(".")[2] in ("wpe", "embed_positions", "position_embeddings"):
            module.weight.data = module.weight.data.roll(-slots, 0)
    ids, real = torch.randint(3, 40, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    ids[0, :3], real[0, :3] = 0, 0  # padding on both sides
    ids[1, 7:], real[1, 7:] = 0, 0
    z = torch.randn(2, NZ) if mode == "memory" else torch.zeros(2, NZ)
    ours = logits(model, ids, latent=z, attention_mask=real)
    expected = logits(plain, ids, attention_mask=real)
    torch.testing.assert_close(ours[real > 0], expected[real > 0], rtol=1e-4, atol=1e-4)
    if model.latent_spec.max_positions is not None:
        left = 64 - slots - (1 if family == "roberta" else 0)  # padding has a position there
        long = torch.randint(3, 40, (1, left + 1))
        logits(model, long[:, 1:], latent=z[:1])
        with pytest.raises(ValueError, match=f"and {left} of them .*left for text"):
            logits(model, long, latent=z[:1])


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_decoders_with_an_encoder_read_memory_in_causal_self_attention_only(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = injected(family, slots=2)
    ids, z = torch.randint(3, 40, (2, 7)), torch.randn(2, NZ)
    ours = logits(model, ids, latent=z)
    file = __import__(type(model).__module__, fromlist=["x"])
    memory = [key for key, _ in model.latent_injection(z).memory]

    def by_hand(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        scaling: Any = None,
        **rest: Any,
    ) -> tuple[Tensor, None]:
        scale = 1 / math.sqrt(query.shape[-1]) if scaling is None else scaling
        scores = query @ key.transpose(2, 3) * scale
        for extra in (rest.get("position_bias"), attention_mask):
            scores = scores if extra is None else scores + extra
        number = getattr(module, TAG, None)
        if number is not None:  # the slot's score has neither bias nor mask
            scores = torch.cat([query @ memory[number].transpose(2, 3) * scale, scores], -1)
            value = torch.cat([memory[number], value], 2)
        return (scores.softmax(-1) @ value).transpose(1, 2), None

    monkeypatch.setattr(file, "eager_attention_forward", by_hand)
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation_internal = "eager"
    torch.testing.assert_close(ours, logits(model, ids), rtol=1e-4, atol=1e-4)
    tagged = [name for name, module in model.named_modules() if hasattr(module, TAG)]
    assert len(tagged) == 2
    assert all("decoder" in name and "encoder_attn" not in name and "EncDec" not in name for name in tagged)


@pytest.mark.parametrize(
    "family", [name for name in {**DECODERS, **ENCODER_DECODERS} if name not in {"gpt_oss", "gemma2"}]
)
def test_eager_and_sdpa_agree(family: str) -> None:
    """GPT-OSS and Gemma 2 have sinks and soft caps, which sdpa does not know."""
    ids, z = torch.randint(3, 40, (2, 8)), torch.randn(2, NZ)
    eager, sdpa = injected(family, "eager"), injected(family, "sdpa")
    sdpa.load_state_dict(eager.state_dict())
    torch.testing.assert_close(
        logits(eager, ids, latent=z), logits(sdpa, ids, latent=z), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("family", {**DECODERS, **ENCODER_DECODERS})
def test_cached_decoding_equals_recomputation(family: str) -> None:
    """Greedy and beams, over a padded batch, with growing and static caches."""
    model, z = injected(family, slots=2), torch.randn(3, NZ)
    prompt = torch.randint(3, 40, (3, 6))
    mask = torch.ones_like(prompt)
    mask[0, :3] = 0
    options = {"attention_mask": mask, "latent": z, "max_new_tokens": 9, "do_sample": False}
    for beams in (1, 3):
        expected = model.generate(prompt, num_beams=beams, use_cache=False, **options)
        assert torch.equal(model.generate(prompt, num_beams=beams, **options), expected)
        static = model.generate(prompt, num_beams=beams, cache_implementation="static", **options)
        assert torch.equal(static, expected)


@pytest.mark.parametrize("family", {**DECODERS, **ENCODER_DECODERS})
def test_without_a_latent_it_is_the_base_model_bit_for_bit(family: str) -> None:
    plain = build(family)
    ids = torch.randint(3, 40, (2, 6))
    before = logits(plain, ids)
    model = inject_latent(plain, latent_size=NZ)
    assert torch.equal(logits(model, ids), before)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("kept", [1, 3])
def test_last_logits_are_the_last_of_all_where_layers_share_keys(cache: str, kept: int) -> None:
    """Gemma 4 drops the queries that nobody asks for, which needs a mask unless there is but one."""
    layers = ["sliding_attention", "full_attention"] * 2
    model = build("gemma4_text", "sdpa", num_hidden_layers=4, num_kv_shared_layers=2, layer_types=layers)
    inject_latent(model, latent_size=NZ, init_std=1.0)
    ids = torch.randint(3, 40, (2, 9))
    for latent in (None, torch.randn(2, NZ)):
        options: dict[str, Any] = {"latent": latent, "logits_to_keep": kept}
        if cache == "static":
            options["past_key_values"] = transformers.StaticCache(model.config, max_cache_len=20)
        last, every = logits(model, ids, **options), logits(model, ids, latent=latent)
        torch.testing.assert_close(last, every[:, -kept:], rtol=1e-4, atol=1e-4)


def test_an_attention_that_chooses_keys_by_an_index_is_refused() -> None:
    """It would attend to all keys, with a latent and without."""
    config = transformers.DeepseekV32Config(
        **{**SMALL, "num_key_value_heads": 4}, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4,
        qk_nope_head_dim=4, v_head_dim=4, moe_intermediate_size=16, n_routed_experts=4, n_group=1,
        topk_group=1, num_experts_per_tok=1, index_topk=3, index_n_heads=2, index_head_dim=8,
    )  # fmt: skip
    model = transformers.DeepseekV32ForCausalLM(config)
    with pytest.raises(ValueError, match=r"DeepseekV32ForCausalLM .*chooses keys by an index"):
        inject_latent(model, latent_size=NZ)
    assert not model.config._attn_implementation.startswith("latent_")


@pytest.mark.parametrize("family", WITHOUT_MEMORY)
def test_where_memory_cannot_work_the_error_names_the_architecture_and_suggests_embeddings(
    family: str,
) -> None:
    model = build(family)
    kind = type(model)
    if family == "gptj" and kind._can_set_attn_implementation():
        pytest.skip("from transformers 5.24 on, GPT-J's attention goes through the interface")
    with pytest.raises(ValueError, match=rf"{kind.__name__} \(model_type '{family}'\).*mode=\"embedding\""):
        inject_latent(model)
    assert type(model) is kind
    assert not hasattr(model.config, "latent_injection")


@pytest.mark.parametrize("family", FAMILIES)
def test_embedding_mode_is_an_addition_to_the_input_embeddings(family: str) -> None:
    model = injected(family, mode="embedding", init_std=0.3)
    ids, z = torch.randint(3, 40, (2, 6)), torch.randn(2, NZ)
    decoder = model.get_decoder() if model.config.is_encoder_decoder else model
    embeds = decoder.get_input_embeddings()(ids) + (z @ model.latent_injection.embedding.weight.T)[:, None]
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            expected = model(**encoder_inputs(model, 2), decoder_inputs_embeds=embeds).logits
        else:
            expected = model(inputs_embeds=embeds).logits
    assert torch.equal(logits(model, ids, latent=z), expected)
    options = {"latent": z, "max_new_tokens": 6, "do_sample": False}
    prompt = encoder_inputs(model, 2) or {"input_ids": ids}
    cached = model.generate(**prompt, **options)
    assert torch.equal(cached, model.generate(**prompt, **options, use_cache=False))


@pytest.mark.parametrize("family", NEED_TOKENS)
def test_where_embeddings_cannot_work_the_error_names_the_architecture(family: str) -> None:
    model = build(family)
    with pytest.raises(ValueError, match=rf"embeddings of {type(model).__name__} \(model_type '{family}'\)"):
        inject_latent(model, mode="embedding", latent_size=NZ)
    assert not hasattr(model, "latent_spec")


def runs_without_weights(model: torch.nn.Module) -> bool:
    """Whether the plain model does: by version of torch, a few do not."""
    ids = torch.zeros(1, 2, dtype=torch.long, device="meta")
    both = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    try:
        model(input_ids=ids, **both)
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("family", {**DECODERS, **ENCODER_DECODERS})
def test_without_weights_it_finds_the_same_or_says_that_it_cannot(family: str) -> None:
    with torch.device("meta"):
        model = build(family)
    if not runs_without_weights(model):
        with pytest.raises(ValueError, match="does not run on the meta device"):
            inject_latent(model, mode="both", latent_size=NZ)
        return
    inject_latent(model, mode="both", latent_size=NZ)
    like = inject_latent(build(family), mode="both", latent_size=NZ)
    assert model.latent_spec == like.latent_spec
    model.to_empty(device="cpu").load_state_dict(like.state_dict())
    for (name, buffer), given in zip(model.named_buffers(), like.buffers(), strict=True):
        assert buffer.shape == given.shape, name
        buffer.copy_(given)  # those that no state dict holds
    ids, z = torch.randint(3, 40, (2, 6)), torch.randn(2, NZ)
    assert torch.equal(logits(model, ids, latent=z), logits(like, ids, latent=z))


def test_sliding_window_keeps_the_latent() -> None:
    """In the last token of a text three windows long, the slot weighs as much as ever."""
    model = injected("mistral")
    ids, z = torch.randint(3, 40, (1, 12)), torch.randn(2, NZ)
    ids = ids.expand(2, -1)
    assert model.config.sliding_window == 4
    ours = logits(model, ids, latent=z)[:, -1]
    assert float((ours[0] - ours[1]).abs().max()) > 0.05
    cache = transformers.DynamicCache(config=model.config)
    with torch.no_grad():
        for token in ids.split(1, 1):
            step = model(token, latent=z, past_key_values=cache).logits[:, -1]
    torch.testing.assert_close(step, ours, rtol=1e-4, atol=1e-4)


def test_a_hybrid_keeps_memory_in_the_attention_that_it_has() -> None:
    config = transformers.Lfm2Config(
        **{**SMALL, "num_key_value_heads": 2}, layer_types=["conv", "full_attention"], block_multiple_of=8
    )
    torch.manual_seed(0)
    model = inject_latent(transformers.Lfm2ForCausalLM(config).eval(), latent_size=NZ, init_std=3.0)
    assert [site.name for site in model.latent_spec.sites] == ["model.layers.1.self_attn"]
    ids, z = torch.randint(3, 40, (2, 6)), torch.randn(2, NZ)
    assert not torch.equal(logits(model, ids, latent=z), logits(model, ids, latent=-z))
    options = {"latent": z, "max_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(ids, **options), model.generate(ids, **options, use_cache=False))
