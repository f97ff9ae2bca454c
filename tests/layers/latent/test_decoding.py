"""Every cache and every kind of decoding gives what recomputing the whole text gives."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.cache_utils import Cache, QuantizedLayer

from fq_toolkit import inject_latent
from tests.layers.latent.oracle import build, gpt2

NZ = 6
LENGTH = 14
Z = torch.randn(3, NZ, generator=torch.Generator().manual_seed(5)) * 2


def injected(mode: str = "memory", family: str = "gpt2", **options: Any) -> Any:
    model = gpt2() if family == "gpt2" else build(family)
    return inject_latent(model, mode=mode, latent_size=NZ, **{"init_std": 0.7, **options})


def recomputed(model: Any, tokens: Tensor, mask: Tensor | None = None, **options: Any) -> Tensor:
    """Greedy tokens by a forward over the whole text for each."""
    mask = torch.ones_like(tokens) if mask is None else mask
    with torch.no_grad():
        for _ in range(LENGTH):
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            out = model(
                tokens, attention_mask=mask, position_ids=positions, use_cache=False, **options
            ).logits
            tokens = torch.cat([tokens, out[:, -1:].argmax(-1)], 1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return tokens


class RoundedLayer(QuantizedLayer):
    """A quantized cache layer whose quantization loses nothing, so that tokens can be compared."""

    def _quantize(self, tensor: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        scale = tensor.abs().amax()
        return tensor / scale, scale

    def _dequantize(self, quantized: tuple[Tensor, Tensor]) -> Tensor:
        return quantized[0] * quantized[1]


def caches(model: Any) -> dict[str, dict[str, Any]]:
    layers = [RoundedLayer(residual_length=4) for _ in range(model.config.num_hidden_layers)]
    return {
        "dynamic": {},
        "none": {"use_cache": False},
        "static": {"cache_implementation": "static"},
        "static, given": {"past_key_values": transformers.StaticCache(model.config, max_cache_len=31)},
        "quantized": {"past_key_values": Cache(layers=layers)},
        "chunked prefill": {"prefill_chunk_size": 3},
        "prompt lookup": {"prompt_lookup_num_tokens": 3},
        "dynamic, given": {"past_key_values": transformers.DynamicCache(config=model.config)},
    }


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("mode", ["memory", "both"])
@pytest.mark.parametrize("cache", list(caches(gpt2())))
def test_greedy_equals_recomputation_with_every_cache(cache: str, mode: str, family: str) -> None:
    model = injected(mode, family)
    prompt = torch.randint(3, 40, (3, 7))
    z = Z
    if cache == "prompt lookup":  # it works on one text at a time
        prompt, z = torch.tensor([[5, 6, 7, 8, 5, 6, 7]]), Z[:1]
    options = caches(model)[cache]
    tokens = model.generate(prompt, latent=z, max_new_tokens=LENGTH, do_sample=False, **options)
    assert torch.equal(tokens, recomputed(model, prompt, latent=z))


class NoStream:
    """Stands for a CUDA stream where there is no CUDA: everything is in order anyway."""

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...

    def wait_stream(self, other: Any) -> None: ...


def test_offloaded_cache_equals_recomputation_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "Stream", NoStream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda *device: NoStream())
    model = injected(slots=2)
    prompt = torch.randint(3, 40, (3, 7))
    cache = transformers.DynamicCache(config=model.config, offloading=True)
    tokens = model.generate(prompt, latent=Z, max_new_tokens=LENGTH, do_sample=False, past_key_values=cache)
    assert torch.equal(tokens, recomputed(model, prompt, latent=Z))
    assert cache.get_seq_length() == 7 + LENGTH - 1, "the cache holds text only"


@pytest.mark.gpu
def test_offloaded_cache_equals_recomputation() -> None:
    model = injected().cuda()
    prompt, z = torch.randint(3, 40, (3, 7)).cuda(), Z.cuda()
    tokens = model.generate(
        prompt, latent=z, max_new_tokens=LENGTH, do_sample=False, cache_implementation="offloaded"
    )
    assert torch.equal(tokens, recomputed(model, prompt, latent=z))


@pytest.mark.parametrize("mode", ["memory", "embedding", "both"])
def test_generation_starts_from_bos_without_a_prompt(mode: str) -> None:
    model = injected(mode)
    tokens = model.generate(latent=Z, max_new_tokens=LENGTH, do_sample=False)
    assert torch.equal(tokens, recomputed(model, torch.ones(3, 1, dtype=torch.long), latent=Z))


def test_beams_equal_recomputation_and_one_latent_serves_all_prompts() -> None:
    model = injected()
    prompt = torch.randint(3, 40, (3, 4))
    options = {"max_new_tokens": 8, "num_beams": 4, "do_sample": False}
    assert torch.equal(
        model.generate(prompt, latent=Z, **options),
        model.generate(prompt, latent=Z, use_cache=False, **options),
    )
    one, each = Z[:1], Z[:1].repeat(3, 1)
    assert torch.equal(
        model.generate(prompt, latent=one, **options), model.generate(prompt, latent=each, **options)
    )


def test_a_batch_is_its_rows() -> None:
    model = injected()
    together = model.generate(latent=Z, max_new_tokens=LENGTH, num_beams=2, do_sample=False)
    for row in range(3):
        alone = model.generate(latent=Z[row : row + 1], max_new_tokens=LENGTH, num_beams=2, do_sample=False)
        assert torch.equal(together[row : row + 1], alone)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_left_padding_changes_nothing(family: str, beams: int) -> None:
    model = injected(family=family)
    prompt = torch.randint(3, 40, (3, 6))
    mask = torch.ones_like(prompt)
    mask[0, :4] = mask[2, :1] = 0
    padded = prompt.masked_fill(mask == 0, 0)
    options = {"max_new_tokens": 8, "do_sample": False, "num_beams": beams}
    together = model.generate(padded, attention_mask=mask, latent=Z, **options)
    for row in range(3):
        alone = model.generate(prompt[row : row + 1, mask[row] == 1], latent=Z[row : row + 1], **options)
        assert torch.equal(together[row, 6:], alone[0, int(mask[row].sum()) :])


def test_sampling_with_several_sequences_per_latent_equals_recomputation() -> None:
    model = injected()
    options = {"latent": Z, "max_new_tokens": 8, "do_sample": True, "num_return_sequences": 4, "top_k": 0}
    torch.manual_seed(1)
    cached = model.generate(**options)
    torch.manual_seed(1)
    assert torch.equal(cached, model.generate(**options, use_cache=False))
    assert cached.shape == (12, 9)
    torch.manual_seed(1)
    by_hand = model.generate(
        torch.ones(12, 1, dtype=torch.long),
        latent=Z.repeat_interleave(4, 0),
        max_new_tokens=8,
        do_sample=True,
        top_k=0,
    )
    assert torch.equal(cached, by_hand)


@pytest.mark.parametrize("draft", ["plain", "injected"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "bart"])
def test_an_assistant_drafts_with_or_without_a_latent(family: str, draft: str) -> None:
    """Its draft is checked token by token, so that greedy tokens are those without an assistant."""
    model, assistant = injected(family=family), build(family)
    if draft == "injected":
        inject_latent(assistant, latent_size=NZ)
    prompt = torch.randint(3, 40, (1, 7))
    options = {"latent": Z[:1], "max_new_tokens": LENGTH, "do_sample": False}
    assisted = model.generate(prompt, assistant_model=assistant, **options)
    assert torch.equal(assisted, model.generate(prompt, **options))


def test_prompts_as_embeddings() -> None:
    model = injected("both")
    prompt = torch.randint(3, 40, (3, 5))
    options = {"latent": Z, "max_new_tokens": 6, "do_sample": False}
    by_embeds = model.generate(inputs_embeds=model.get_input_embeddings()(prompt), **options)
    assert torch.equal(by_embeds, model.generate(prompt, **options)[:, 5:])


def test_compiled_static_decode_equals_eager() -> None:
    model = injected()
    config = transformers.CompileConfig(fullgraph=True, mode="default")
    config._compile_all_devices = True
    prompt = torch.randint(3, 40, (3, 4))
    options = {"latent": Z, "max_new_tokens": 4, "do_sample": False}
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = model.generate(prompt, cache_implementation="static", compile_config=config, **options)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1, "nothing was compiled"
    assert torch.equal(compiled, model.generate(prompt, **options))


@pytest.mark.parametrize("beams", [1, 3])
def test_guidance_is_the_formula(beams: int) -> None:
    model, scale = injected(latent_dropout=0.1), 2.5
    prompt = torch.randint(3, 40, (3, 4))
    null = torch.zeros(1, NZ)

    def guided(tokens: Tensor) -> Tensor:
        with torch.no_grad():
            with_latent, without = (model(tokens, latent=z).logits[:, -1].log_softmax(-1) for z in (Z, null))
        return without + scale * (with_latent - without)

    tokens = prompt
    for _ in range(8):
        tokens = torch.cat([tokens, guided(tokens).argmax(-1, keepdim=True)], 1)
    options = {"latent": Z, "max_new_tokens": 8, "do_sample": False, "guidance_scale": scale}
    if beams == 1:
        assert torch.equal(model.generate(prompt, **options), tokens)
    else:
        together = model.generate(prompt, num_beams=beams, **options)
        alone = model.generate(prompt[:1], num_beams=beams, **{**options, "latent": Z[:1]})
        assert torch.equal(together[:1], alone)
    same = model.generate(prompt, **{**options, "guidance_scale": 1.0})
    assert torch.equal(same, model.generate(prompt, latent=Z, max_new_tokens=8, do_sample=False))
    assert not torch.equal(same, tokens)


@pytest.mark.parametrize("beams", [1, 3])
def test_options_of_generate_mean_the_same_wherever_they_stand(beams: int) -> None:
    """As keywords, in a config by name or place, in the model's, or some here and some there."""
    model, prompt = injected(), torch.randint(3, 40, (3, 4))
    options = {"guidance_scale": 2.5, "num_beams": beams, "max_new_tokens": 8, "do_sample": False}
    expected = model.generate(prompt, latent=Z, **options)
    begun = model.generate(latent=Z, bos_token_id=7, **options)
    assert torch.equal(begun, model.generate(torch.full((3, 1), 7), latent=Z, **options))
    given = transformers.GenerationConfig(**options)
    assert torch.equal(model.generate(prompt, latent=Z, generation_config=given), expected)
    assert torch.equal(model.generate(prompt, given, latent=Z), expected)
    named = transformers.GenerationConfig(**options, bos_token_id=7)
    assert torch.equal(model.generate(latent=Z, generation_config=named), begun)
    model.generation_config.guidance_scale, model.generation_config.num_beams = 2.5, beams
    rest = {name: options[name] for name in ("max_new_tokens", "do_sample")}
    assert torch.equal(model.generate(prompt, latent=Z, **rest), expected)
    part = transformers.GenerationConfig(**rest)
    assert torch.equal(model.generate(prompt, latent=Z, generation_config=part), expected)


def test_guidance_away_from_a_given_latent_and_with_padding() -> None:
    model = injected()
    prompt = torch.randint(3, 40, (2, 5))
    mask = torch.ones_like(prompt)
    mask[0, :3] = 0
    options = {"max_new_tokens": 6, "do_sample": False, "guidance_scale": 3.0}
    together = model.generate(prompt, attention_mask=mask, latent=Z[:2], null_latent=Z[1:], **options)
    alone = model.generate(prompt[:1, 3:], latent=Z[:1], null_latent=Z[1:2], **options)
    assert torch.equal(together[0, 5:], alone[0, 2:])


def test_guidance_says_what_it_cannot_do() -> None:
    model = injected()
    with pytest.raises(ValueError, match="null_latent has no effect without guidance_scale"):
        model.generate(latent=Z, null_latent=Z)
    with pytest.raises(ValueError, match="null_latent needs a latent"):
        model.generate(torch.ones(1, 1, dtype=torch.long), null_latent=Z)
    with pytest.raises(ValueError, match="null_latent has 2 rows"):
        model.generate(latent=Z, null_latent=Z[:2], guidance_scale=2.0)
    with pytest.raises(ValueError, match="prompt lookup"):
        model.generate(latent=Z, guidance_scale=2.0, prompt_lookup_num_tokens=3)
    with pytest.raises(ValueError, match="assistant model"):
        model.generate(latent=Z[:1], guidance_scale=2.0, assistant_early_exit=1)
    with pytest.raises(ValueError, match="decoder-only"):
        injected(family="t5").generate(torch.ones(3, 2, dtype=torch.long), latent=Z, guidance_scale=2.0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_continuous_batching_of_plain_text_works_and_a_latent_is_refused(attention: str) -> None:
    plain, model = build("llama", attention), inject_latent(build("llama", attention), latent_size=NZ)
    prompt = torch.tensor([[3, 4, 5]])
    before = model.generate(prompt, latent=Z[:1], max_new_tokens=3, do_sample=False)
    config = transformers.GenerationConfig(max_new_tokens=3, do_sample=False, eos_token_id=-1, pad_token_id=0)
    # Pages for so few tokens, rather than for all the memory of the machine.
    pages = transformers.ContinuousBatchingConfig(num_blocks=8, block_size=8, max_batch_tokens=8)
    options = {"generation_config": config, "continuous_batching_config": pages, "warmup": False}
    tokens = [
        next(iter(each.generate_batch(prompt.tolist(), **options).values())).generated_tokens
        for each in (plain, model)
    ]
    assert tokens[0] == tokens[1]
    assert len(tokens[1]) == 3
    for name in ("latent", "null_latent"):
        with pytest.raises(ValueError, match=rf"continuous batching.* takes no {name}.*model\.generate"):
            model.generate_batch(prompt.tolist(), generation_config=config, **{name: Z[:1]})
    again = model.generate(prompt, latent=Z[:1], max_new_tokens=3, do_sample=False)
    assert torch.equal(again, before)
