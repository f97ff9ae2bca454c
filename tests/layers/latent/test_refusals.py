"""Why a latent is refused: the reason is the right one, and what was meant is named."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from fq_toolkit import inject_latent, load_latent
from tests.layers.latent.oracle import randomize

SIZES: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


def made(name: str, **changes: Any) -> Any:
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **changes})
    return randomize(getattr(transformers, f"{name}ForCausalLM")(config))


@pytest.mark.parametrize(("name", "attention"), [("StableLm", "StableLmAttention"), ("Nemotron", "Nemotron")])
def test_attention_that_computes_by_itself_is_named(name: str, attention: str) -> None:
    model = made(name)
    with pytest.raises(
        ValueError, match=rf"its attention \(.*{attention}.*not through the attention interface"
    ):
        inject_latent(model)
    inject_latent(model, "embedding")


def test_a_model_without_attention_has_none() -> None:
    config = transformers.MambaConfig(vocab_size=40, hidden_size=32, num_hidden_layers=1, state_size=4)
    with pytest.raises(ValueError, match=r"it has no attention layers; use mode=.embedding."):
        inject_latent(transformers.MambaForCausalLM(config))


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("family", ["bart", "t5"])
def test_a_part_of_a_model_is_refused_and_the_whole_is_named(family: str, part: str) -> None:
    if family == "bart":
        whole: Any = transformers.BartModel(
            transformers.BartConfig(
                vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
            )
        )  # fmt: skip
    else:
        whole = transformers.T5Model(
            transformers.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        )
    with pytest.raises(ValueError, match="inject into the whole model with a language-modelling head"):
        inject_latent(getattr(whole, part))


HYBRIDS: dict[str, dict[str, Any]] = {
    "Qwen3Next": {
        "num_hidden_layers": 4, "head_dim": 8, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    },
    "Jamba": {
        "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
        "num_experts": 2, "mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", HYBRIDS)
def test_hybrids_decode_with_memory_in_the_attention_that_they_have(name: str) -> None:
    if not hasattr(transformers, f"{name}ForCausalLM"):
        pytest.skip(f"this transformers has no {name}")
    model = inject_latent(made(name, **HYBRIDS[name]), latent_size=4, init_std=1.0)
    assert len(model.latent_spec.layers) == 1
    ids, z = torch.randint(5, 40, (2, 6)), torch.randn(2, 4)
    written = model.generate(ids, latent=z, max_new_tokens=5, do_sample=False, pad_token_id=0)
    logits = model(written[:, :-1], latent=z).logits[:, 5:]
    assert torch.equal(logits.argmax(-1), written[:, 6:])
    assert not torch.allclose(logits, model(written[:, :-1], latent=-z).logits[:, 5:])


def pictures_model() -> Any:
    text = transformers.LlamaConfig(**SIZES)
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=8,
        patch_size=4,
    )  # fmt: skip
    config = transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=39)
    return randomize(transformers.LlavaForConditionalGeneration(config))


def test_a_model_of_pictures_reads_memory_and_refuses_embeddings() -> None:
    ids, z = torch.tensor([[5, 39, 39, 39, 39, 6, 7]]), torch.randn(1, 4)
    pixels = torch.randn(1, 3, 8, 8)
    model = inject_latent(pictures_model(), latent_size=4, init_std=1.0)
    out = model(ids, pixel_values=pixels, latent=z).logits
    assert not torch.allclose(out, model(ids, pixel_values=pixels, latent=-z).logits)
    assert not torch.allclose(out, model(ids, pixel_values=-pixels, latent=z).logits)
    for mode in ("embedding", "both"):
        other = inject_latent(pictures_model(), mode, latent_size=4)
        with pytest.raises(
            ValueError, match='cannot find the places of pixel_values; inject with mode="memory"'
        ):
            other(ids, pixel_values=pixels, latent=z)
        other(ids[:, :1], latent=z)  # text alone works


class OwnConfig(transformers.GPT2Config):
    model_type = "own-gpt"


class OwnGPT(transformers.GPT2LMHeadModel):
    config_class = OwnConfig


def test_a_registered_class_of_ones_own_loads(tmp_path: Path) -> None:
    transformers.AutoConfig.register("own-gpt", OwnConfig, exist_ok=True)
    transformers.AutoModelForCausalLM.register(OwnConfig, OwnGPT, exist_ok=True)
    config = OwnConfig(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    model = inject_latent(OwnGPT(config).eval(), latent_size=4)
    model.save_pretrained(tmp_path)
    loaded = load_latent(tmp_path)
    assert loaded._latent_base is OwnGPT
    ids, z = torch.randint(40, (2, 5)), torch.randn(2, 4)
    assert torch.equal(loaded(ids, latent=z).logits, model(ids, latent=z).logits)


def test_a_draft_with_latents_of_another_size_is_named() -> None:
    model, draft = (inject_latent(made("Llama"), latent_size=size) for size in (4, 6))
    with pytest.raises(ValueError, match="the assistant_model was injected with latent_size=6"):
        model.generate(torch.tensor([[5, 6]]), latent=torch.randn(1, 4), assistant_model=draft)


def test_a_cache_that_was_filled_before_the_text_says_what_fills_one() -> None:
    """What PEFT's prefix tuning does."""
    model = inject_latent(made("Llama"), latent_size=4)
    cache = transformers.DynamicCache(config=model.config)
    for layer in range(2):
        cache.update(torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8), layer)
    with pytest.raises(ValueError, match="prefix tuning fills one, and cannot go with a latent"):
        model(torch.tensor([[5, 6]]), latent=torch.randn(1, 4), past_key_values=cache)


def test_low_ranks_on_a_frozen_projection_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """What LoRA on all linear layers makes of the projections: random, frozen, and of rank r."""
    model = inject_latent(made("Llama"), latent_size=4).requires_grad_(False)
    projector = model.latent_injection
    projector.lora_A = torch.nn.Linear(4, 2, bias=False)
    model.train()(torch.tensor([[5, 6]]), latent=torch.randn(1, 4))
    assert 'modules_to_save=["latent_injection"]' in caplog.text
