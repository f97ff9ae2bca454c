"""Released models into ours and back, from small files under the names of the release."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from fq_toolkit import inject_latent
from fq_toolkit.optimus.model.convert import convert_optimus
from fq_toolkit.optimus.model.sentence_vae import SentenceVAE
from fq_toolkit.training.errors import RunError
from tests.layers.latent.oracle import SIZES, original_logits, original_state
from tests.optimus.model.test_hub import bert_like, gpt2_like
from tests.optimus.toys import TEXTS, decoder_of, tiny_encoder, toy_tokenizers, toy_vae

NZ, WIDTH, WORDS = SIZES["latent"], SIZES["width"], SIZES["vocabulary"]
OLD_BERT = {
    "attention_probs_dropout_prob": 0.1, "finetuning_task": None, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1, "hidden_size": WIDTH, "initializer_range": 0.02, "intermediate_size": 24,
    "layer_norm_eps": 1e-12, "max_position_embeddings": 32, "num_attention_heads": 4, "num_hidden_layers": 2,
    "num_labels": 2, "output_attentions": False, "pruned_heads": {}, "torchscript": False,
    "type_vocab_size": 2, "vocab_size": WORDS,
}  # fmt: skip
OLD_GPT2 = {
    "attn_pdrop": 0.1, "embd_pdrop": 0.1, "initializer_range": 0.02, "latent_size": NZ,
    "layer_norm_epsilon": 1e-5, "n_ctx": SIZES["positions"], "n_embd": WIDTH, "n_head": SIZES["heads"],
    "n_layer": SIZES["layers"], "n_positions": SIZES["positions"], "num_labels": 2, "resid_pdrop": 0.1,
    "vocab_size": 50257,  # not updated when <PAD>, <BOS> and <EOS> were added
}  # fmt: skip


def encoder_state(seed: int = 0) -> dict[str, Tensor]:
    """Random weights of a BERT under the original's names."""
    torch.manual_seed(seed)
    state = {
        "embeddings.word_embeddings.weight": torch.randn(WORDS, WIDTH),
        "embeddings.position_embeddings.weight": torch.randn(32, WIDTH),
        "embeddings.token_type_embeddings.weight": torch.randn(2, WIDTH),
        "embeddings.LayerNorm.weight": torch.randn(WIDTH),
        "embeddings.LayerNorm.bias": torch.randn(WIDTH),
        "pooler.dense.weight": torch.randn(WIDTH, WIDTH),
        "pooler.dense.bias": torch.randn(WIDTH),
        "linear.weight": torch.randn(2 * NZ, WIDTH) * 0.3,
    }
    for layer in range(2):
        block = f"encoder.layer.{layer}."
        shapes = {f"attention.self.{name}": (WIDTH, WIDTH) for name in ("query", "key", "value")}
        shapes |= {"attention.output.dense": (WIDTH, WIDTH), "intermediate.dense": (24, WIDTH)}
        shapes |= {"output.dense": (WIDTH, 24)}
        for name, shape in shapes.items():
            state[f"{block}{name}.weight"] = torch.randn(*shape) * 0.5
            state[f"{block}{name}.bias"] = torch.randn(shape[0])
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            state[f"{block}{name}.weight"], state[f"{block}{name}.bias"] = torch.randn(2, WIDTH)
    return state


def released(folder: Path, steps: tuple[int, ...] = (31250,), full: bool = True, **args: Any) -> Path:
    """Write a run's folder as the original does."""
    for step in steps:
        encoder, decoder = encoder_state(step), original_state(step)
        for role, state, config in (("encoder", encoder, OLD_BERT), ("decoder", decoder, OLD_GPT2)):
            place = folder / f"checkpoint-{role}-{step}"
            place.mkdir(parents=True)
            torch.save(state, place / "pytorch_model.bin")
            (place / "config.json").write_text(json.dumps(config))
        if full:
            beta = np.float64(0.5)
            space = argparse.Namespace(latent_size=NZ, beta=beta, device=torch.device("cuda"), **args)
            both = {f"encoder.{name}": value for name, value in encoder.items()}
            both |= {f"decoder.{name}": value for name, value in decoder.items()}
            (folder / f"checkpoint-full-{step}").mkdir()
            torch.save(
                {
                    "iter": step,
                    "model_state_dict": both,
                    "optimizer_state_dict": {},
                    "beta": beta,
                    "args": space,
                },
                folder / f"checkpoint-full-{step}" / "training.bin",
            )
    return folder


def weights(file: Path) -> dict[str, Tensor]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        loaded = torch.load(file, weights_only=True)
    return loaded.get("model_state_dict", loaded)


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("full", [True, False])
def test_there_and_back_bit_for_bit(full: bool, tmp_path: Path) -> None:
    source = released(tmp_path / "released", full=full)
    assert convert_optimus(source, tmp_path / "ours", tokenizers=toy_tokenizers()) == tmp_path / "ours"
    convert_optimus(tmp_path / "ours", tmp_path / "again", step=31250)
    for role, state in (("encoder", encoder_state(31250)), ("decoder", original_state(31250))):
        place = f"checkpoint-{role}-31250"
        assert_same_bits(weights(tmp_path / "again" / place / "pytorch_model.bin"), state)
        config = json.loads((tmp_path / "again" / place / "config.json").read_text())
        expected = {"encoder": OLD_BERT, "decoder": {**OLD_GPT2, "vocab_size": WORDS}}[role]
        assert {name: config[name] for name in expected if name in config} == expected | {
            name: config[name] for name in expected if name not in config
        }
    both = weights(tmp_path / "again" / "checkpoint-full-31250" / "training.bin")
    expected_both = {f"encoder.{name}": value for name, value in encoder_state(31250).items()}
    expected_both |= {f"decoder.{name}": value for name, value in original_state(31250).items()}
    assert_same_bits(both, expected_both)


@pytest.mark.parametrize("mode", ["memory", "embedding", "both"])
def test_ours_there_and_back(mode: str, tmp_path: Path) -> None:
    vae = toy_vae(mode)
    vae.save_pretrained(tmp_path / "ours")
    convert_optimus(tmp_path / "ours", tmp_path / "released", step=7)
    convert_optimus(tmp_path / "released", tmp_path / "again", tokenizers=vae.tokenizers)
    again = SentenceVAE.from_pretrained(tmp_path / "again")
    assert again.decoder.latent_spec.mode == mode, "the command line says it"
    assert_same_bits(again.state_dict(), vae.state_dict())
    torch.testing.assert_close(again.encode(TEXTS), vae.encode(TEXTS))


def test_it_computes_what_the_original_does(tmp_path: Path) -> None:
    convert_optimus(released(tmp_path / "r"), tmp_path / "ours", tokenizers=toy_tokenizers())
    vae = SentenceVAE.from_pretrained(tmp_path / "ours")
    assert (vae.latent_size, vae.pooling, vae.decoder.latent_spec.mode) == (NZ, "pooler", "both")
    ids, z = torch.randint(4, WORDS, (3, 7)), torch.randn(3, NZ)
    ids[:, 0] = 1
    logits = original_logits(original_state(31250), ids, z, "both")
    expected = -logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None]).sum((1, 2))
    torch.testing.assert_close(vae.nll(z, ids, torch.ones_like(ids)), expected, rtol=1e-4, atol=1e-4)
    plain = transformers.BertModel(transformers.BertConfig(**{**OLD_BERT, "num_labels": 2}))
    state = encoder_state(31250)
    projection = state.pop("linear.weight")
    plain.load_state_dict(state)
    batch = vae.batch(TEXTS)
    pooled = plain.eval()(batch.encoder_ids, attention_mask=batch.encoder_mask).pooler_output
    q = vae.posterior(batch.encoder_ids, batch.encoder_mask)
    torch.testing.assert_close(torch.cat([*q], 1), pooled @ projection.T, rtol=1e-4, atol=1e-4)


def test_the_last_step_is_taken_unless_another_is_asked_for(tmp_path: Path) -> None:
    source = released(tmp_path / "r", (500, 31250, 4000))
    for step, expected in ((None, 31250), (500, 500)):
        out = convert_optimus(source, tmp_path / f"o{expected}", step=step, tokenizers=toy_tokenizers())
        found = SentenceVAE.from_pretrained(out).linear.weight
        assert torch.equal(found.detach(), encoder_state(expected)["linear.weight"])
    with pytest.raises(ValueError, match=r"has no checkpoint of step 7; it has \[500, 4000, 31250\]"):
        convert_optimus(source, tmp_path / "x", step=7, tokenizers=toy_tokenizers())


def test_the_command_line_of_the_run_says_the_mode_and_the_tokenizers(tmp_path: Path) -> None:
    encoder, decoder = str(bert_like(tmp_path / "bert")), str(gpt2_like(tmp_path / "gpt2"))
    names = {"encoder_model_name_or_path": encoder, "decoder_model_name_or_path": decoder}
    source = released(tmp_path / "r", latent_as_gpt_emb=0, latent_as_gpt_memory=1, **names)
    with pytest.raises(ValueError, match=r"the decoder embeds 40 tokens and its tokenizer has \d+"):
        convert_optimus(source, tmp_path / "ours")  # found and read, but larger than this toy's table
    ours = convert_optimus(source, tmp_path / "ours", tokenizers=toy_tokenizers())
    assert SentenceVAE.from_pretrained(ours).decoder.latent_spec.mode == "memory"
    other = convert_optimus(source, tmp_path / "other", tokenizers=toy_tokenizers(), mode="embedding")
    assert SentenceVAE.from_pretrained(other).decoder.latent_spec.mode == "embedding"


def test_without_tokenizers_and_offline_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match="cannot load 'bert-base-cased'"):
        convert_optimus(released(tmp_path / "r"), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_single_file_is_enough(tmp_path: Path) -> None:
    released(tmp_path / "r")
    for number, place in enumerate(("checkpoint-full-31250", "checkpoint-full-31250/training.bin")):
        # Without config.json nothing tells how many heads there are.
        heads = 1 + number
        options: dict[str, Any] = {"tokenizers": toy_tokenizers()}
        for wrong, message in ((None, "heads cannot be told from its weights"), (5, "expected a divisor")):
            with pytest.raises(ValueError, match=message):
                convert_optimus(tmp_path / "r" / place, tmp_path / "no", **options, heads=wrong)
        out = convert_optimus(tmp_path / "r" / place, tmp_path / str(number), **options, heads=heads)
        vae = SentenceVAE.from_pretrained(out)
        assert vae.encoder.config.num_attention_heads == vae.decoder.config.n_head == heads
        assert torch.equal(vae.linear.weight.detach(), encoder_state(31250)["linear.weight"])


def test_what_does_not_convert_is_named(tmp_path: Path) -> None:
    source, tokenizers = released(tmp_path / "r", full=False), toy_tokenizers()

    def fails(message: str, encoder: dict[str, Any] | None = None, **options: Any) -> None:
        if encoder is not None:
            torch.save(encoder, source / "checkpoint-encoder-31250" / "pytorch_model.bin")
        with pytest.raises(ValueError, match=message):
            convert_optimus(source, tmp_path / "out", tokenizers=tokenizers, **options)
        assert not (tmp_path / "out").exists()

    state = encoder_state(31250)
    fails("no linear.weight", {name: v for name, v in state.items() if name != "linear.weight"})
    fails(
        "pooler.dense.bias is missing", {name: v for name, v in state.items() if name != "pooler.dense.bias"}
    )
    fails(r"pooler\.more is unknown", {**state, "pooler.more": torch.zeros(1)})
    fails(r"pooler\.dense\.bias is \(3,\), expected \(16,\)", {**state, "pooler.dense.bias": torch.zeros(3)})
    fails("no matrix embeddings.position", {n: v for n, v in state.items() if "position" not in n})
    fails("mode must be one of", state, mode="memories")
    (source / "checkpoint-decoder-31250" / "config.json").write_text("{")
    fails("config.json' is damaged")
    (source / "checkpoint-decoder-31250" / "pytorch_model.bin").unlink()
    (source / "checkpoint-decoder-31250" / "config.json").unlink()
    (source / "checkpoint-decoder-31250").rmdir()
    fails("has no decoder; give the folder with")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds none of"):
        convert_optimus(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(ValueError, match="there is no file"):
        convert_optimus(tmp_path / "nowhere", tmp_path / "out")


def test_what_the_release_cannot_hold_is_named(tmp_path: Path) -> None:
    def fails(vae: SentenceVAE, name: str, message: str, **options: Any) -> None:
        vae.save_pretrained(tmp_path / name)
        with pytest.raises(ValueError, match=message):
            convert_optimus(tmp_path / name, tmp_path / "out", **options)

    bert, tokenizers = tiny_encoder("bert"), toy_tokenizers()
    fails(SentenceVAE(bert, decoder_of("llama"), tokenizers), "a", "a BertModel and a LlamaForCausalLM")
    fails(
        SentenceVAE(tiny_encoder("t5"), decoder_of("gpt2"), tokenizers), "b", "a T5EncoderModel and a GPT2LM"
    )
    fails(SentenceVAE(bert, decoder_of("gpt2"), tokenizers, pooling="cls"), "c", "BERT's pooler")
    two = inject_latent(decoder_of("gpt2"), slots=2)
    fails(SentenceVAE(bert, two, tokenizers), "d", "one slot in every layer")
    fails(toy_vae(), "e", "mode, tokenizers and heads are for released models", mode="both")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("")
    fails(toy_vae(), "f", "holds files that must not be lost")
