"""The cache of a text is read by what it is, under whatever name a version of transformers gives it."""

import warnings
from typing import Any

import pytest
import torch
import transformers

from fq_toolkit import inject_latent
from tests.layers.latent.oracle import build

NZ = 6
NAMES = ("cache", "past_key_values")
FAMILIES = ("gpt2", "opt", "roberta", "llama", "bart")


def injected(family: str, mode: str = "memory") -> Any:
    return inject_latent(build(family), mode, NZ, init_std=0.7)


def arguments(model: Any, ids: torch.Tensor) -> dict[str, Any]:
    if model.config.is_encoder_decoder:
        return {"input_ids": torch.arange(3, 8)[None].expand(2, -1), "decoder_input_ids": ids}
    return {"input_ids": ids}


@pytest.mark.parametrize("mode", ["memory", "both"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_a_cache_under_either_name_continues_the_text(family: str, name: str, mode: str) -> None:
    model, z = injected(family, mode), torch.randn(2, NZ)
    ids = torch.randint(3, 40, (2, 9))
    with torch.no_grad():
        expected = model(**arguments(model, ids), latent=z, use_cache=False).logits
        for kind in ("given", "returned"):
            cache = None
            if kind == "given":
                cache = transformers.DynamicCache(config=model.config)
                if model.config.is_encoder_decoder:
                    cache = transformers.EncoderDecoderCache(cache, transformers.DynamicCache())
            parts = []
            for part in ids.split((4, 1, 4), dim=1):
                out = model(**arguments(model, part), latent=z, use_cache=True, **{name: cache})
                parts.append(out.logits)
                cache = next(value for value in out.values() if hasattr(value, "get_seq_length"))
            torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_guards_hold_under_either_name(name: str) -> None:
    model, z, ids = injected("gpt2"), torch.randn(2, NZ), torch.randint(3, 40, (2, 60))
    with torch.no_grad():
        cache = transformers.DynamicCache(config=model.config)
        model(ids, latent=z, **{name: cache})
        with pytest.raises(ValueError, match="a text of 65 tokens is too long"):
            model(ids[:, :5], latent=z, **{name: cache})
        with pytest.raises(ValueError, match="latent has changed in the middle"):
            model(ids[:, :1], latent=z + 1, **{name: cache})


def test_two_caches_are_one_too_many() -> None:
    model, z, ids = injected("gpt2"), torch.randn(2, NZ), torch.randint(3, 40, (2, 4))
    caches = {name: transformers.DynamicCache(config=model.config) for name in NAMES}
    with pytest.raises(ValueError, match=r"two caches were given.*leave one of them out"):
        model(ids, latent=z, **caches)


def test_a_cache_by_position_and_in_a_tuple() -> None:
    model, z, ids = injected("gpt2"), torch.randn(2, NZ), torch.randint(3, 40, (2, 6))
    with torch.no_grad():
        expected = model(ids, latent=z).logits[:, -1:]
        _, cache = model(ids[:, :5], latent=z, use_cache=True, return_dict=False)
        last = model(ids[:, 5:], cache, latent=z).logits
        torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)
        with pytest.raises(ValueError, match="latent has changed in the middle"):
            model(ids[:, 5:], cache, latent=-z)


def test_generation_and_guidance_call_the_cache_what_the_model_calls_it() -> None:
    """No warning about names that are going away."""
    model, z = injected("gpt2"), torch.randn(2, NZ)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*past_key_values.*")
        model.generate(latent=z, max_new_tokens=3, do_sample=False, guidance_scale=2.0)
