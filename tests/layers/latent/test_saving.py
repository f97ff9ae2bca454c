"""Saving, loading, removing; checkpoints of the release."""

import argparse
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from fq_toolkit import inject_latent, load_latent, remove_latent
from fq_toolkit.layers.latent.original_checkpoints import load_original_decoder, read_original
from tests.layers.latent.oracle import (
    DECODERS,
    ENCODER_DECODERS,
    SIZES,
    WITHOUT_MEMORY,
    build,
    gpt2,
    original_logits,
    original_state,
)

NZ = 6
IDS = torch.randint(3, 40, (4, 5), generator=torch.Generator().manual_seed(2))


def logits(model: Any, **options: Any) -> torch.Tensor:
    name = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
    with torch.no_grad():
        return model(**{"input_ids": IDS, name: IDS}, **options).logits


def assert_same(loaded: Any, model: Any, z: torch.Tensor) -> None:
    """The same weights, bit for bit; outputs may differ by how a loaded tensor is aligned in memory."""
    state = loaded.state_dict()
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    torch.testing.assert_close(logits(loaded, latent=z), logits(model, latent=z), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", [
    {}, {"mode": "embedding"}, {"layers": [1]},
    {"mode": "both", "slots": 2, "share_kv": False, "projector": "mlp"},
])  # fmt: skip
def test_saved_and_loaded_in_all_three_ways(options: dict[str, Any], tmp_path: Path) -> None:
    plain = gpt2()
    base = logits(plain)
    model, z = inject_latent(plain, **{"latent_size": NZ, "init_std": 0.7, **options}), torch.randn(4, NZ)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["GPT2LMHeadModel"]
    assert "latent_sdpa" not in (tmp_path / "config.json").read_text()
    loaded = load_latent(tmp_path)
    assert type(loaded) is type(model)
    assert loaded.latent_spec == model.latent_spec
    assert_same(loaded, model, z)
    assert torch.equal(
        loaded.generate(latent=z, max_new_tokens=5, num_beams=2),
        model.generate(latent=z, max_new_tokens=5, num_beams=2),
    )
    for kind in (transformers.GPT2LMHeadModel, transformers.AutoModelForCausalLM):
        again = kind.from_pretrained(tmp_path)
        assert type(again) is transformers.GPT2LMHeadModel
        torch.testing.assert_close(logits(again), base, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", {**DECODERS, **ENCODER_DECODERS, **WITHOUT_MEMORY})
def test_families_are_saved_loaded_and_removed(family: str, tmp_path: Path) -> None:
    plain = build(family)
    base = logits(plain)
    model = inject_latent(plain, "embedding" if family in WITHOUT_MEMORY else "both", NZ, init_std=0.7)
    z = torch.randn(4, NZ)
    model.save_pretrained(tmp_path)
    loaded = load_latent(tmp_path)
    assert_same(loaded, model, z)
    torch.testing.assert_close(logits(remove_latent(loaded)), base, rtol=1e-6, atol=1e-6)


def test_a_sharded_folder_and_a_custom_projector(tmp_path: Path) -> None:
    def own() -> nn.Module:
        return nn.Sequential(nn.Linear(NZ, 8), nn.SiLU(), nn.Linear(8, SIZES["layers"] * SIZES["width"]))

    model, z = inject_latent(gpt2(), latent_size=NZ, projector=own()), torch.randn(4, NZ)
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same(load_latent(tmp_path, projector=own()), model, z)
    with pytest.raises(ValueError, match="saved with the projector that was given to inject_latent"):
        load_latent(tmp_path)


def test_saving_where_the_config_asks_for_attentions(tmp_path: Path) -> None:
    model = gpt2(attn_implementation="eager")
    model.config.output_attentions = True
    inject_latent(model, latent_size=NZ)
    model.save_pretrained(tmp_path)
    assert model.config._attn_implementation == "latent_eager"
    assert load_latent(tmp_path).latent_spec == model.latent_spec


def test_loading_in_another_precision(tmp_path: Path) -> None:
    inject_latent(gpt2(), latent_size=NZ).save_pretrained(tmp_path)
    loaded = load_latent(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert logits(loaded, latent=torch.randn(4, NZ)).dtype == torch.bfloat16


def test_loading_says_what_is_wrong(tmp_path: Path) -> None:
    gpt2().save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="no latent was injected into the model in"):
        load_latent(tmp_path / "plain")
    inject_latent(gpt2(), latent_size=NZ).save_pretrained(tmp_path / "m")
    with pytest.raises(ValueError, match="saved with no projector"):
        load_latent(tmp_path / "m", projector=nn.Linear(NZ, 48))
    file = tmp_path / "m" / "model.safetensors"
    weights = load_file(file)
    del weights["latent_injection.memory.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack latent_injection\.memory\.weight, which would be random"):
        load_latent(tmp_path / "m")


@pytest.mark.parametrize("family", {**DECODERS, **ENCODER_DECODERS})
def test_models_of_one_config_stay_apart(family: str, tmp_path: Path) -> None:
    """A plain model and two injected ones, made of the same config object to compare settings."""
    plain = build(family)
    before = plain.config.to_dict()
    first, second = type(plain)(plain.config), type(plain)(plain.config)
    inject_latent(first, latent_size=NZ)
    inject_latent(second, latent_size=NZ + 1, slots=2)
    assert plain.config.to_dict() == before
    assert not plain.config._attn_implementation.startswith("latent_")
    first.save_pretrained(tmp_path / "first")
    assert_same(load_latent(tmp_path / "first"), first.eval(), torch.randn(4, NZ))
    assert type(remove_latent(first)) is type(remove_latent(second)) is type(plain)


@pytest.mark.parametrize("mode", ["memory", "embedding", "both"])
def test_removal_is_bit_for_bit(mode: str) -> None:
    model = gpt2()
    before, keys = logits(model), list(model.state_dict())
    config, attributes = model.config.to_dict(), set(vars(model))
    bits = [p.clone() for p in model.parameters()]
    tokens = model.generate(IDS, max_new_tokens=5, do_sample=False)
    inject_latent(model, mode, NZ)
    model(IDS, latent=torch.randn(4, NZ), labels=IDS).loss.backward()
    assert torch.equal(logits(model), before)
    assert remove_latent(model) is model
    assert type(model) is transformers.GPT2LMHeadModel
    assert list(model.state_dict()) == keys
    assert model.config.to_dict() == config
    assert model.config._attn_implementation == "sdpa"
    assert set(vars(model)) == attributes
    assert all(not hasattr(module, "_latent_layer") for module in model.modules())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), bits, strict=True))
    assert torch.equal(logits(model), before)
    assert torch.equal(model.generate(IDS, max_new_tokens=5, do_sample=False), tokens)
    inject_latent(model, mode, NZ)


def encoder_state() -> dict[str, torch.Tensor]:
    return {"embeddings.word_embeddings.weight": torch.randn(4, 3), "encoder.layer.0.x": torch.randn(2),
            "pooler.dense.weight": torch.randn(3, 3), "linear.weight": torch.randn(2 * NZ, 3)}  # fmt: skip


def released(folder: Path, kind: str) -> Path:
    """Write a run's folder as the original does; return what to load."""
    decoder, encoder = original_state(), encoder_state()
    # The trainer takes beta out of an array, so that it is a number of numpy's.
    beta = np.float64(0.5)
    args = argparse.Namespace(latent_size=NZ, beta=beta, latent_as_gpt_emb=1, device=torch.device("cuda"))
    if kind == "decoder":
        (folder / "checkpoint-decoder-9").mkdir()
        torch.save(decoder, folder / "checkpoint-decoder-9" / "pytorch_model.bin")
        return folder / "checkpoint-decoder-9"
    (folder / "checkpoint-full-9").mkdir()
    both = {f"decoder.{key}": value for key, value in decoder.items()}
    both |= {f"encoder.{key}": value for key, value in encoder.items()}
    full = {"iter": 9, "model_state_dict": both, "optimizer_state_dict": {}, "beta": beta, "args": args}
    torch.save(full, folder / "checkpoint-full-9" / "training.bin")
    return folder / "checkpoint-full-9" / "training.bin"


@pytest.mark.parametrize("mode", ["memory", "embedding", "both"])
@pytest.mark.parametrize("kind", ["decoder", "full"])
def test_checkpoints_of_the_release_convert(kind: str, mode: str, tmp_path: Path) -> None:
    model = inject_latent(gpt2(), mode, NZ)
    load_original_decoder(model, released(tmp_path, kind))
    z = torch.randn(4, NZ)
    expected = original_logits(original_state(), IDS, z, mode)
    torch.testing.assert_close(logits(model, latent=z), expected, rtol=1e-5, atol=1e-4)


def test_a_full_checkpoint_holds_the_encoder_and_the_command_line_too(tmp_path: Path) -> None:
    checkpoint = read_original(released(tmp_path, "full"))
    assert checkpoint.args is not None
    assert checkpoint.args["latent_size"] == NZ
    assert checkpoint.args["beta"] == 0.5
    assert checkpoint.encoder is not None
    assert sorted(checkpoint.encoder) == sorted(encoder_state())
    torch.save(encoder_state(), tmp_path / "pytorch_model.bin")
    alone = read_original(tmp_path)
    assert alone.decoder is None
    assert alone.encoder is not None
    assert sorted(alone.encoder) == sorted(encoder_state())


def test_numbers_that_numpy_1_wrote_are_read(tmp_path: Path) -> None:
    torch.save({**encoder_state(), "beta": np.float64(0.5)}, tmp_path / "pytorch_model.bin")
    new, old = tmp_path / "pytorch_model.bin", tmp_path / "old" / "pytorch_model.bin"
    old.parent.mkdir()
    with zipfile.ZipFile(new) as source, zipfile.ZipFile(old, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                assert b"core.multiarray\nscalar" in content
                content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            target.writestr(name, content)
    assert read_original(old).encoder is not None


class Evil:
    def __reduce__(self) -> Any:
        return print, ("code from a checkpoint has run",)


def test_a_checkpoint_runs_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"args": Evil()}, tmp_path / "training.bin")
    with pytest.raises(Exception, match="Weights only load failed"):
        read_original(tmp_path)
    assert "has run" not in capsys.readouterr().out


def test_conversion_says_what_is_wrong(tmp_path: Path) -> None:
    model = inject_latent(gpt2(), "both", NZ)
    with pytest.raises(ValueError, match="inject_latent comes before"):
        load_original_decoder(gpt2(), original_state())
    with pytest.raises(ValueError, match=r"transformer\.wte\.weight is \(41, 16\), the model has \(40, 16\)"):
        load_original_decoder(model, {**original_state(), "transformer.wte.weight": torch.zeros(41, 16)})
    lacking = {key: value for key, value in original_state().items() if key != "transformer.linear.weight"}
    with pytest.raises(ValueError, match=r"latent_injection\.memory\.weight is missing"):
        load_original_decoder(model, lacking)
    with pytest.raises(ValueError, match=r"transformer\.x is unknown"):
        load_original_decoder(model, {**original_state(), "transformer.x": torch.zeros(1)})
    with pytest.raises(ValueError, match="has no decoder"):
        load_original_decoder(model, encoder_state())
    with pytest.raises(ValueError, match="one slot, a shared key and value"):
        load_original_decoder(inject_latent(gpt2(), latent_size=NZ, slots=2), original_state())
    with pytest.raises(ValueError, match="holds none of"):
        read_original(tmp_path)
    with pytest.raises(ValueError, match="there is no file"):
        read_original(tmp_path / "x.bin")


def test_the_journey_of_a_language_researcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    gpt2().save_pretrained("gpt2")
    mask, z = torch.ones_like(IDS), torch.randn(4, 32)

    model = inject_latent(
        transformers.AutoModelForCausalLM.from_pretrained("gpt2"), mode="memory", latent_size=32
    )
    base = model(IDS).logits
    out = model(IDS, attention_mask=mask, latent=z, labels=IDS)
    assert torch.isfinite(out.loss)
    ids = model.generate(latent=z, num_beams=4, max_new_tokens=20)
    assert ids.shape == (4, 21)
    assert (ids[:, 0] == 1).all()
    assert "\n" not in model.latent_status()
    model.save_pretrained("m")
    model = load_latent("m")
    assert torch.equal(model.generate(latent=z, num_beams=4, max_new_tokens=20), ids)
    for plain in (transformers.GPT2LMHeadModel.from_pretrained("m"), remove_latent(model)):
        torch.testing.assert_close(plain(IDS).logits, base, rtol=1e-6, atol=1e-6)
