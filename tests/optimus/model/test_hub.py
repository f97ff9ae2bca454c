"""Pretrained networks by name: small local folders that look like those of the hub."""

import json
import re
from pathlib import Path

import pytest
import torch
import transformers

from fq_toolkit.optimus.model.hub import add_text_tokens, load_pretrained
from fq_toolkit.optimus.model.sentence_vae import SentenceVAE
from fq_toolkit.training.errors import RunError
from tests.optimus.toys import TEXTS, tiny_encoder, toy_tokenizers


def gpt2_like(folder: Path) -> Path:
    """A folder like gpt2's: 258 byte-level tokens, the last <|endoftext|>, which is BOS and EOS."""
    import tokenizers

    raw = tokenizers.Tokenizer(tokenizers.models.BPE())
    raw.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=257, initial_alphabet=alphabet, show_progress=False)
    raw.train_from_iterator(TEXTS, trainer)
    raw.add_special_tokens(["<|endoftext|>"])
    tokenizer = transformers.GPT2TokenizerFast(
        tokenizer_object=raw, bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>"
    )
    tokenizer.save_pretrained(folder)
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_layer=1, n_head=2, n_embd=16, n_positions=64,
        bos_token_id=len(tokenizer) - 1, eos_token_id=len(tokenizer) - 1,
    )  # fmt: skip
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def bert_like(folder: Path) -> Path:
    toy_tokenizers().encoder.save_pretrained(folder)
    tiny_encoder("bert").save_pretrained(folder)
    return folder


def test_a_vae_from_two_folders(tmp_path: Path) -> None:
    encoder, decoder = bert_like(tmp_path / "bert"), gpt2_like(tmp_path / "gpt2")
    base = transformers.GPT2LMHeadModel.from_pretrained(decoder)
    size = base.config.vocab_size
    vae = SentenceVAE.from_hub(str(encoder), str(decoder), latent_size=5, mode="both")
    assert (vae.latent_size, vae.decoder.latent_spec.mode) == (5, "both")
    tokenizer = vae.tokenizers.decoder
    assert [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id] == [
        size,
        size + 1,
        size + 2,
    ]
    assert [tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token] == ["<PAD>", "<BOS>", "<EOS>"]
    table = vae.decoder.transformer.wte.weight
    assert table.shape[0] == size + 3
    assert torch.equal(table[:size], base.transformer.wte.weight), "the old rows stay"
    assert 0.005 < float(table[size:].detach().std()) < 0.05, "the new ones are drawn as GPT-2 draws"
    batch = vae.batch(["two dogs"])
    assert batch.decoder_ids[0, 0] == size + 1
    assert batch.decoder_ids[0, -1] == size + 2
    assert tokenizer.decode(batch.decoder_ids[0, 1:-1]) == " two dogs", "a space before the first word too"
    vae.save_pretrained(tmp_path / "m")
    again = SentenceVAE.from_pretrained(tmp_path / "m")
    assert torch.equal(again.batch(TEXTS).decoder_ids, vae.batch(TEXTS).decoder_ids)


def test_an_encoder_of_t5_is_loaded_without_its_decoder(tmp_path: Path) -> None:
    config = transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    toy_tokenizers().encoder.save_pretrained(tmp_path / "t5")
    encoder, _, _ = load_pretrained(str(tmp_path / "t5"), str(gpt2_like(tmp_path / "gpt2")))
    assert type(encoder) is transformers.T5EncoderModel


def test_tokens_are_added_once_and_only_where_they_are_missing(tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(gpt2_like(tmp_path))
    decoder = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    assert add_text_tokens(tokenizer, decoder) == 3
    assert add_text_tokens(tokenizer, decoder) == 0
    assert decoder.get_input_embeddings().weight.shape[0] == len(tokenizer)
    own = toy_tokenizers().decoder
    small = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=40, n_layer=1, n_head=2, n_embd=16)
    )
    assert add_text_tokens(own, small) == 0
    assert small.config.vocab_size == 40, "a table that is large enough stays as it is"
    without_pad = toy_tokenizers().decoder
    without_pad.pad_token = None
    assert add_text_tokens(without_pad, small) == 0, "<PAD> is in this vocabulary already"
    assert without_pad.pad_token == "<PAD>"
    assert without_pad.bos_token == "<BOS>"


def test_a_name_of_the_hub_while_offline() -> None:
    for encoder, decoder in (("someone/bert", "gpt2"), ("./nowhere", "gpt2")):
        with pytest.raises(
            RunError, match=rf"cannot load '{re.escape(encoder)}': .* give a local folder, or run once with"
        ):
            SentenceVAE.from_hub(encoder, decoder, local_files_only=True)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    bert_like(tmp_path / "bert")
    (tmp_path / "bert" / "model.safetensors").unlink()
    with pytest.raises(RunError, match=r"cannot load .*bert'"):
        SentenceVAE.from_hub(str(tmp_path / "bert"), str(gpt2_like(tmp_path / "gpt2")))
    assert "latent" not in json.loads((tmp_path / "gpt2" / "config.json").read_text())


def test_a_checkpoint_without_a_pooler_gives_the_state_of_cls(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What masked language models leave: transformers would put a random pooler on it."""
    base = tiny_encoder("bert")
    masked = transformers.BertForMaskedLM(base.config)
    masked.save_pretrained(tmp_path / "bert")
    toy_tokenizers().encoder.save_pretrained(tmp_path / "bert")
    names = [str(tmp_path / "bert"), str(gpt2_like(tmp_path / "gpt2"))]
    vae = SentenceVAE.from_hub(*names, latent_size=5).eval()
    assert vae.pooling == "cls"
    assert "has no pooler" in caplog.text
    batch = vae.batch(TEXTS)
    expected = (
        masked.eval().bert(batch.encoder_ids, attention_mask=batch.encoder_mask).last_hidden_state[:, 0]
    )
    torch.testing.assert_close(vae.sentence_vector(batch.encoder_ids, batch.encoder_mask), expected)
    assert SentenceVAE.from_hub(*names, pooling="mean").pooling == "mean"
    with pytest.raises(ValueError, match="has no pooler"):
        SentenceVAE.from_hub(*names, pooling="pooler")


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    folder = bert_like(tmp_path / "bert")
    encoder = tiny_encoder("bert")
    state = {name: value for name, value in encoder.state_dict().items() if "layer.0.output" not in name}
    encoder.save_pretrained(folder, state_dict=state)
    with pytest.raises(RunError, match=r"lacks encoder\.layer\.0\.output.* would be random"):
        load_pretrained(str(folder), str(gpt2_like(tmp_path / "gpt2")))
