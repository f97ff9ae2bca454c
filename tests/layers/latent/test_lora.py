"""With the adapters of PEFT: the latent's projections are trained, saved and loaded, or saving refuses."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fq_toolkit import inject_latent, load_latent, remove_latent
from tests.layers.latent.oracle import gpt2

NZ = 6
IDS = torch.randint(3, 40, (4, 5), generator=torch.Generator().manual_seed(2))
RECIPE = {"modules_to_save": ["latent_injection"]}


def z() -> Tensor:
    return torch.randn(4, NZ, generator=torch.Generator().manual_seed(3))


def injected(dtype: torch.dtype = torch.float32) -> Any:
    return inject_latent(gpt2().to(dtype), "both", NZ, init_std=0.7)


def lora(**options: Any) -> Any:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    return peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True, **options)


def adapted(way: str, model: Any, config: Any) -> Any:
    import peft

    if way == "get_peft_model":
        return peft.get_peft_model(model, config)
    model.add_adapter(config)
    return model


def train(model: Any) -> None:
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=IDS, latent=z(), labels=IDS).loss.backward()
        optimizer.step()
    model.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", ["add_adapter", "get_peft_model"])
def test_the_recipe_from_end_to_end(
    way: str, dtype: torch.dtype, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, base = lora(**RECIPE), injected(dtype)
    base.save_pretrained(tmp_path / "base")
    start = base.latent_injection.memory.weight.detach().clone()
    model = adapted(way, base, config)
    train(model)
    assert not any("frozen" in record.getMessage() for record in caplog.records)
    expected = model(input_ids=IDS, latent=z()).logits
    assert not torch.equal(model(input_ids=IDS, latent=-z()).logits, expected)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"holds only an adapter.*load_adapter"):
        load_latent(tmp_path / "adapter")
    loaded = load_latent(tmp_path / "base")
    assert torch.equal(loaded.latent_injection.memory.weight, start)
    if way == "get_peft_model":
        import peft

        again = peft.PeftModel.from_pretrained(loaded, tmp_path / "adapter").eval()
    else:
        loaded.load_adapter(str(tmp_path / "adapter"))
        again = loaded.eval()
    torch.testing.assert_close(again(input_ids=IDS, latent=z()).logits, expected, rtol=1e-6, atol=1e-6)
    ids = again.generate(input_ids=IDS, latent=z(), max_new_tokens=4, do_sample=False)
    assert torch.equal(ids, model.generate(input_ids=IDS, latent=z(), max_new_tokens=4, do_sample=False))


def test_an_adapter_that_would_leave_the_latent_out_is_not_saved(tmp_path: Path) -> None:
    model = injected()
    model.add_adapter(lora())
    with pytest.raises(ValueError, match=r'LoraConfig\(\.\.\., modules_to_save=\["latent_injection"\]\)'):
        model.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []
    model.add_adapter(lora(**RECIPE), adapter_name="second")
    model.save_pretrained(tmp_path / "second")
    assert (tmp_path / "second" / "adapter_model.safetensors").exists()


def test_the_refusal_without_the_library(tmp_path: Path) -> None:
    """What transformers notes in a model that has an adapter is enough."""
    model = injected()
    model._hf_peft_config_loaded = True
    model.active_adapters = lambda: ["default"]
    with pytest.raises(ValueError, match="latent's projections are not in it"):
        model.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds only an adapter"):
        load_latent(tmp_path)


def test_frozen_projections_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    model = injected().train()
    model.latent_injection.requires_grad_(False)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            model(IDS, latent=z(), labels=IDS).loss.backward()
    messages = [record.getMessage() for record in caplog.records]
    assert len([message for message in messages if 'modules_to_save=["latent_injection"]' in message]) == 1


def test_an_adapted_model_gives_the_latent_back() -> None:
    model = gpt2()
    before = model(IDS).logits
    inject_latent(model, "both", NZ)
    model.add_adapter(lora(**RECIPE))
    model.eval()
    remove_latent(model)
    assert torch.equal(model(IDS).logits, before)
