"""Saving is whole or not at all, loading is strict, and both networks stay ordinary folders."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from fq_toolkit import inject_latent
from fq_toolkit.optimus.model.sentence_vae import SentenceVAE
from fq_toolkit.training.errors import RunError
from tests.optimus.toys import NZ, TEXTS, decoder_of, tiny_encoder, toy_tokenizers, toy_vae


def assert_same(first: SentenceVAE, second: SentenceVAE) -> None:
    """Weights bit for bit, settings, and what comes out."""
    assert first.state_dict().keys() == second.state_dict().keys()
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
        assert value.dtype == second.state_dict()[name].dtype
    for name in ("latent_size", "pooling", "max_length"):
        assert getattr(first, name) == getattr(second, name)
    assert first.decoder.latent_spec == second.decoder.latent_spec
    for ours, theirs in zip(first.batch(TEXTS)[:4], second.batch(TEXTS)[:4], strict=True):
        assert torch.equal(ours, theirs)
    torch.testing.assert_close(first.encode(TEXTS), second.encode(TEXTS), rtol=1e-5, atol=1e-6)
    assert first.reconstruct(TEXTS, max_new_tokens=8) == second.reconstruct(TEXTS, max_new_tokens=8)


@pytest.mark.parametrize("mode", ["memory", "embedding", "both"])
def test_comes_back_bit_for_bit(mode: str, tmp_path: Path) -> None:
    vae = toy_vae(mode, max_length=20)
    vae.save_pretrained(tmp_path / "m")
    loaded = SentenceVAE.from_pretrained(tmp_path / "m")
    assert_same(vae, loaded)
    assert not any(module.training for module in loaded.modules())
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == [
        "decoder", "encoder", "posterior.safetensors", "tokenizers", "vae.json"
    ]  # fmt: skip
    assert os.listdir(tmp_path) == ["m"], "nothing else is left"


@pytest.mark.parametrize("kind", ["bert without a pooler", "roberta", "distilbert", "t5"])
def test_any_encoder_comes_back_by_its_own_class(kind: str, tmp_path: Path) -> None:
    vae = SentenceVAE(tiny_encoder(kind), decoder_of("llama"), toy_tokenizers(), latent_size=NZ)
    vae.eval().save_pretrained(tmp_path)
    loaded = SentenceVAE.from_pretrained(tmp_path)
    assert type(loaded.encoder) is type(vae.encoder)
    assert loaded.pooling == vae.pooling
    torch.testing.assert_close(loaded.encode(TEXTS), vae.encode(TEXTS))


def test_other_projectors_and_types_come_back(tmp_path: Path) -> None:
    decoder = inject_latent(decoder_of("gpt2"), "both", NZ, slots=2, share_kv=False, projector="mlp")
    vae = SentenceVAE(tiny_encoder("bert"), decoder, toy_tokenizers(), latent_size=NZ).bfloat16().eval()
    vae.save_pretrained(tmp_path)
    loaded = SentenceVAE.from_pretrained(tmp_path)
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.bfloat16}
    for name, value in vae.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])


def test_a_run_folder_is_as_good(tmp_path: Path) -> None:
    vae = toy_vae()
    vae.save_pretrained(tmp_path / "run" / "model")
    (tmp_path / "run" / "config.json").write_text("{}")
    assert_same(vae, SentenceVAE.from_pretrained(str(tmp_path / "run")))


def test_the_networks_are_ordinary_folders(tmp_path: Path) -> None:
    vae = toy_vae()
    vae.save_pretrained(tmp_path)
    decoder = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "decoder").eval()
    encoder = transformers.AutoModel.from_pretrained(tmp_path / "encoder").eval()
    assert type(decoder) is transformers.GPT2LMHeadModel
    ids = torch.tensor([[1, 5, 6]])
    torch.testing.assert_close(decoder(ids).logits, vae.decoder(ids).logits)
    torch.testing.assert_close(encoder(ids).pooler_output, vae.encoder(ids).pooler_output)
    written = decoder.generate(max_new_tokens=3)
    assert written[0, 0] == vae.tokenizers.decoder.bos_token_id, "it knows where a sentence begins"


def test_a_second_save_replaces_the_first(tmp_path: Path) -> None:
    first, second = toy_vae(seed=1), toy_vae(seed=2)
    first.save_pretrained(tmp_path / "m")
    second.save_pretrained(tmp_path / "m")
    assert_same(second, SentenceVAE.from_pretrained(tmp_path / "m"))
    assert os.listdir(tmp_path) == ["m"]


class FullDisk(OSError):
    def __init__(self) -> None:
        super().__init__(28, "No space left on device")


@pytest.mark.parametrize("moment", ["encoder", "decoder", "end"])
def test_a_failed_save_leaves_what_was_there(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = toy_vae(seed=1), toy_vae(seed=2)
    first.save_pretrained(tmp_path / "m")

    def fails(*args: Any, **kwargs: Any) -> None:
        raise FullDisk

    if moment == "end":
        monkeypatch.setattr("fq_toolkit.optimus.model.saving.save_file", fails)
    else:
        monkeypatch.setattr(getattr(second, moment), "save_pretrained", fails)
    with pytest.raises(RunError, match=r"the disk is full. Nothing half-written was left"):
        second.save_pretrained(tmp_path / "m")
    with pytest.raises(RunError, match="the disk is full"):
        second.save_pretrained(tmp_path / "new")
    assert os.listdir(tmp_path) == ["m"]
    assert_same(first, SentenceVAE.from_pretrained(tmp_path / "m"))


def test_files_of_others_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "thesis.txt").write_text("my thesis")
    with pytest.raises(ValueError, match="holds files that must not be lost; give a new folder"):
        toy_vae().save_pretrained(tmp_path / "m")
    with pytest.raises(ValueError, match="is a file; give a folder"):
        toy_vae().save_pretrained(tmp_path / "m" / "thesis.txt")
    assert (tmp_path / "m" / "thesis.txt").read_text() == "my thesis"
    (tmp_path / "empty").mkdir()
    toy_vae().save_pretrained(tmp_path / "empty")
    assert (tmp_path / "empty" / "vae.json").is_file()


def test_another_latent_size_is_an_error_with_both_numbers(tmp_path: Path) -> None:
    toy_vae().save_pretrained(tmp_path / "m")
    with pytest.raises(ValueError, match=r"saved with latent_size=6, and latent_size=32 is asked for"):
        SentenceVAE.from_pretrained(tmp_path / "m", latent_size=32)
    assert SentenceVAE.from_pretrained(tmp_path / "m", latent_size=6).latent_size == 6
    settings = json.loads((tmp_path / "m" / "vae.json").read_text())
    (tmp_path / "m" / "vae.json").write_text(json.dumps({**settings, "latent_size": 5}))
    with pytest.raises(ValueError, match=r"latent_size=6, and latent_size=5 is asked for"):
        SentenceVAE.from_pretrained(tmp_path / "m")


def test_damaged_and_foreign_folders_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    toy_vae().save_pretrained(folder)
    settings = json.loads((folder / "vae.json").read_text())
    assert settings == {"version": 1, "latent_size": 6, "pooling": "pooler", "max_length": 31}
    for content, message in {
        json.dumps({**settings, "version": 2}): "has version 2, and this fq-toolkit reads version 1",
        "{": "is damaged",
        "[]": "has version None",
        json.dumps({**settings, "colour": 1}): "missing or unknown: colour",
    }.items():
        (folder / "vae.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            SentenceVAE.from_pretrained(folder)
    (folder / "vae.json").write_text(json.dumps(settings))
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(12, 4)}, folder / "posterior.safetensors")
    with pytest.raises(ValueError, match=r"its weight is \(12, 4\), and \(12, 16\) is needed"):
        SentenceVAE.from_pretrained(folder)
    save_file({"bias": torch.zeros(12)}, folder / "posterior.safetensors")
    with pytest.raises(ValueError, match=r"it holds \['bias'\]"):
        SentenceVAE.from_pretrained(folder)
    with pytest.raises(ValueError, match="holds no sentence VAE: neither it nor its folder model"):
        SentenceVAE.from_pretrained(tmp_path)


def test_a_name_that_is_no_folder_while_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        RunError, match="there is no folder 'someone/optimus-snli', and no sentence VAE of that"
    ):
        SentenceVAE.from_pretrained("someone/optimus-snli")
    with pytest.raises(RunError, match=r"there is no folder '\./runs/missing'"):
        SentenceVAE.from_pretrained("./runs/missing")


def test_a_repository_of_the_hub_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = toy_vae()
    vae.save_pretrained(tmp_path / "downloaded")
    asked = []

    def download(name: str) -> str:
        asked.append(name)
        return str(tmp_path / "downloaded")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert_same(vae, SentenceVAE.from_pretrained("someone/optimus"))
    assert asked == ["someone/optimus"]


def test_loading_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    toy_vae().save_pretrained(tmp_path / "m")
    transformers.utils.logging.enable_progress_bar()
    try:
        SentenceVAE.from_pretrained(tmp_path / "m")
        assert transformers.utils.logging.is_progress_bar_enabled()
    finally:
        transformers.utils.logging.disable_progress_bar()
    assert capfd.readouterr() == ("", "")


class _Adapted(torch.nn.Module):
    """A linear layer with a low-rank addition, under the names that PEFT gives."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = torch.nn.Linear(base.weight.shape[0], 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x)


@pytest.mark.parametrize("role", ["encoder", "decoder"])
def test_a_network_that_saves_a_part_of_itself_replaces_no_good_model(
    role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = toy_vae()
    vae.save_pretrained(tmp_path / "m")
    broken = toy_vae(seed=3)
    network = getattr(broken, role)
    parent = network.encoder.layer[0].output if role == "encoder" else network.transformer.h[0].mlp
    name = "dense" if role == "encoder" else "c_fc"
    setattr(parent, name, _Adapted(getattr(parent, name)))
    kind, whole = type(network), type(network).save_pretrained

    def adapters_only(self: Any, folder: Any, **options: Any) -> None:
        state = {key: value for key, value in self.state_dict().items() if "lora" in key}
        whole(self, folder, state_dict=state, **options)

    monkeypatch.setattr(kind, "save_pretrained", adapters_only)
    with pytest.raises(ValueError, match=rf"the {role} saved .* Nothing was replaced"):
        broken.save_pretrained(tmp_path / "m")
    monkeypatch.undo()
    assert_same(vae, SentenceVAE.from_pretrained(tmp_path / "m"))
    assert os.listdir(tmp_path) == ["m"]


def test_a_path_that_is_no_text_is_a_path(tmp_path: Path) -> None:
    place = Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xff"))
    vae = toy_vae()
    vae.save_pretrained(place)
    assert_same(vae, SentenceVAE.from_pretrained(place))
