"""A latent that never arrives is told: in training, by its name, and in saved models."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit import inject_latent, load_latent
from fq_toolkit.layers.latent.missing_latents import PATIENCE, refuse_lookalikes
from tests.layers.latent.oracle import FAMILIES, build, gpt2

NZ = 6
IDS = torch.randint(3, 40, (4, 5), generator=torch.Generator().manual_seed(2))


def injected(**options: Any) -> Any:
    return inject_latent(gpt2(), **{"mode": "both", "latent_size": NZ, "init_std": 0.7, **options})


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize("mode", ["memory", "embedding", "both"])
def test_training_without_any_latent_is_told_once(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    model = injected(mode=mode).train()
    for step in range(3 * PATIENCE):
        assert len(told(caplog)) == int(step >= PATIENCE)
        model(IDS, labels=IDS).loss.backward()
    assert "came without a latent" in told(caplog)[0]


def test_one_latent_is_enough_and_evaluation_is_no_training(caplog: pytest.LogCaptureFixture) -> None:
    model = injected()
    for _ in range(2 * PATIENCE):
        model(IDS)
    model.train()
    with torch.no_grad():
        for _ in range(2 * PATIENCE):
            model(IDS)
    model(IDS)
    model(IDS, latent=torch.randn(4, NZ))
    for _ in range(2 * PATIENCE):
        model(IDS)
    assert told(caplog) == []


def test_a_column_of_another_name_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed")

    def train(**options: Any) -> None:
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), max_steps=PATIENCE + 1, per_device_train_batch_size=1, report_to=[],
            save_strategy="no", disable_tqdm=True, use_cpu=True, **options,
        )  # fmt: skip
        data = [{"input_ids": row, "labels": row, "latents": torch.randn(NZ)} for row in IDS]
        transformers.Trainer(injected(), arguments, train_dataset=data).train()

    train()
    assert sum("came without a latent" in message for message in told(caplog)) == 1
    with pytest.raises(TypeError, match=r"no keyword 'latents'.*passed as latent="):
        train(remove_unused_columns=False)


def test_a_compiled_step_without_a_latent_is_told() -> None:
    model, z = injected().train(), torch.randn(4, NZ)
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)  # not caplog, to which torch hands all its traces
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("fq_toolkit").addHandler(handler)
    torch._dynamo.reset()
    try:
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        for _ in range(2):
            compiled(IDS, latent=z)
        assert said == []
        for _ in range(2 * PATIENCE):
            compiled(IDS)
    finally:
        logging.getLogger("fq_toolkit").removeHandler(handler)
    assert len(said) == 1
    assert "compiled without a latent" in said[0]
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled(IDS, latent=z)
        compiled(IDS)


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize(
    "name", ["latents", "Latent", "latent_vector", "laten", "latnet", "lantent", "z", "null_latent"]
)
def test_keywords_that_were_meant_to_be_the_latent_are_refused(family: str, name: str) -> None:
    model, z = inject_latent(build(family), "embedding", NZ), torch.randn(4, NZ)
    text = {"input_ids": IDS, "decoder_input_ids": IDS} if family == "t5" else {"input_ids": IDS}
    for call in (model, model.forward, model.generate):
        if name == "null_latent" and call == model.generate:
            continue
        with pytest.raises(TypeError, match=f"no keyword '{name}', which would be ignored"):
            call(**text, **{name: z})
    model(**text, latent=z)


def test_no_family_has_a_parameter_that_looks_like_the_latent() -> None:
    for family in FAMILIES:
        model = build(family)
        names = transformers.utils.generic.inspect.signature(type(model).forward).parameters
        refuse_lookalikes(inject_latent(model, "embedding"), dict.fromkeys(names))


@settings(max_examples=50, deadline=None)
@given(
    word=st.sampled_from(["latent", "latents"]),
    letter=st.sampled_from("aelntx_"),
    place=st.integers(0, 6),
    slip=st.sampled_from(["drop", "double", "replace", "swap"]),
)
def test_one_slip_of_a_key_is_refused(word: str, letter: str, place: int, slip: str) -> None:
    at = place % len(word)
    name = {
        "drop": word[:at] + word[at + 1 :],
        "double": word[:at] + letter + word[at:],
        "replace": word[:at] + letter + word[at + 1 :],
        "swap": word[:at] + word[at : at + 2][::-1] + word[at + 2 :],
    }[slip]
    if name == "latent":
        return
    with pytest.raises(TypeError, match="passed as latent="):
        refuse_lookalikes(MODEL, {name: None})


MODEL = injected()


def test_other_keywords_go_where_they_went() -> None:
    model = inject_latent(build("llama"), latent_size=NZ)
    out = model(IDS, latent=torch.randn(4, NZ), labels=IDS, num_items_in_batch=20, return_dict=True)
    assert torch.isfinite(out.loss)


def test_a_saved_model_says_how_it_is_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    injected().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["latent_injection"]["loaded_by"] == (
        "fq_toolkit.load_latent"
    )
    plain, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert any("load_latent" in key for key in info["unexpected_keys"]), "what the warning lists"
    assert told(caplog) == []
    inject_latent(plain, latent_size=NZ)
    assert sum("load_latent" in message for message in told(caplog)) == 1
    caplog.clear()
    loaded, info = load_latent(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert not info["missing_keys"]
    assert not any("load_latent" in key for key in loaded.state_dict())
    inject_latent(gpt2(), latent_size=NZ)
    assert told(caplog) == []


@pytest.mark.parametrize("shards", ["1GB", "8KB"])
def test_the_mark_is_no_weight(shards: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = injected()
    model.save_pretrained(tmp_path, max_shard_size=shards)
    state = {key: value for file in tmp_path.glob("*.safetensors") for key, value in load_file(file).items()}
    again = injected()
    outcome = again.load_state_dict(state, strict=False)
    assert outcome.unexpected_keys == []
    assert set(outcome.missing_keys) <= {"lm_head.weight"}
    assert not any("load_latent" in key for key in model.state_dict())
    model.save_pretrained(tmp_path / "gathered", state_dict=model.state_dict())
    assert any("load_latent" in key for key in load_file(tmp_path / "gathered" / "model.safetensors"))
