"""The networks of a sentence VAE: posteriors, likelihoods and losses from any encoder and any decoder."""

import math
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from fq_toolkit import inject_latent
from fq_toolkit.optimus.model.batch import TextBatch, make_batch
from fq_toolkit.optimus.model.posterior import Posterior
from fq_toolkit.optimus.model.sentence_vae import SentenceVAE
from tests.layers.latent.oracle import gpt2, randomize
from tests.optimus.toys import NZ, TEXTS, decoder_of, tiny_encoder, toy_tokenizers, toy_vae

ENCODERS = ["bert", "bert without a pooler", "roberta", "distilbert", "t5"]
DECODERS = ["gpt2", "llama", "mistral", "gemma3", "opt", "bart", "t5"]
LONG = [*TEXTS, "a man rides a horse in the snow . a girl runs . two dogs play ."]


def vae_with(encoder: str = "bert", decoder: str = "gpt2", mode: str = "memory") -> SentenceVAE:
    torch.manual_seed(0)
    vae = SentenceVAE(
        tiny_encoder(encoder), decoder_of(decoder), toy_tokenizers(), latent_size=NZ, mode=mode, init_std=0.4
    )
    randomize(vae.decoder)
    return vae.eval()


def pooled_by_hand(vae: SentenceVAE, text: str, pooling: str) -> Tensor:
    """The sentence vector of one sentence without any padding."""
    batch = make_batch([text], vae.tokenizers, max_length=40)
    hidden = vae.encoder(input_ids=batch.encoder_ids).last_hidden_state[0]
    if pooling == "mean":
        return hidden.mean(0)
    if pooling == "cls":
        return hidden[0]
    dense = vae.encoder.pooler.dense
    return torch.tanh(dense.weight @ hidden[0] + dense.bias)


@pytest.mark.parametrize("kind", ENCODERS)
def test_posteriors_are_the_pooled_sentence_through_one_matrix(kind: str) -> None:
    vae = vae_with(kind)
    pooling = {"bert": "pooler", "roberta": "pooler"}.get(kind, "cls")
    assert vae.pooling == pooling
    with torch.no_grad():
        q = vae.encode(LONG)
        for row, text in enumerate(LONG):
            both = vae.linear.weight @ pooled_by_hand(vae, text, pooling)
            torch.testing.assert_close(q.mean[row], both[:NZ], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(q.logvar[row], both[NZ:], rtol=1e-4, atol=1e-5)
    assert vae.linear.bias is None
    assert vae.linear.weight.shape == (2 * NZ, 16)


def test_a_cls_that_stands_last_is_not_looked_for_in_front() -> None:
    import tokenizers

    own = toy_tokenizers()
    own.encoder.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A [SEP] [CLS]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    assert SentenceVAE(tiny_encoder("distilbert"), decoder_of("gpt2"), own, latent_size=NZ).pooling == "mean"
    with pytest.raises(ValueError, match="DistilBertModel has a tokenizer without a CLS token in front"):
        SentenceVAE(tiny_encoder("distilbert"), decoder_of("gpt2"), own, latent_size=NZ, pooling="cls")


def test_mean_pooling_leaves_padding_out() -> None:
    torch.manual_seed(0)
    vae = SentenceVAE(
        tiny_encoder("t5"), decoder_of("gpt2"), toy_tokenizers(), latent_size=NZ, pooling="mean", init_std=0.4
    ).eval()
    with torch.no_grad():
        q = vae.encode(LONG)
        for row, text in enumerate(LONG):
            expected = (vae.linear.weight @ pooled_by_hand(vae, text, "mean"))[:NZ]
            torch.testing.assert_close(q.mean[row], expected, rtol=1e-4, atol=1e-5)


def test_the_encoder_always_gets_its_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, masks = toy_vae(), []
    forward = type(vae.encoder).forward

    def watched(self: Any, input_ids: Tensor, attention_mask: Tensor, **kwargs: Any) -> Any:
        assert torch.equal(attention_mask, (input_ids != 0).long())
        masks.append(attention_mask)
        return forward(self, input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    monkeypatch.setattr(type(vae.encoder), "forward", watched)
    vae.encode(LONG)
    vae(vae.batch(LONG))
    vae.log_likelihood(LONG, iw=2)  # the release forgets it here
    vae.reconstruct(LONG, max_new_tokens=1)
    assert len(masks) == 4
    assert all(bool((mask == 0).any()) for mask in masks), "the batches must have padding"


@pytest.mark.parametrize(
    ("family", "mode"),
    [*((family, "memory") for family in DECODERS), ("gpt2", "embedding"), ("gpt2", "both"), ("t5", "both")],
)
def test_nll_is_the_sum_over_the_tokens_of_each_sentence(family: str, mode: str) -> None:
    vae = vae_with(decoder=family, mode=mode)
    z = torch.randn(len(LONG), NZ)
    batch = vae.batch(LONG)
    with torch.no_grad():
        found = vae.nll(z, batch.decoder_ids, batch.decoder_mask)
        for row in range(len(LONG)):
            ids = batch.decoder_ids[row][batch.decoder_mask[row] == 1]
            inputs: dict[str, Tensor] = {"input_ids": ids[None]}
            if vae.decoder.config.is_encoder_decoder:
                inputs = {"input_ids": ids[None, :1], "decoder_input_ids": ids[None]}
            logits = vae.decoder(**inputs, latent=z[row : row + 1]).logits[0].double()
            expected = -sum(
                float(logits[t, ids[t + 1]] - logits[t].exp().sum().log()) for t in range(len(ids) - 1)
            )
            assert math.isclose(float(found[row]), expected, rel_tol=1e-4)
        other = vae.nll(z.roll(1, 0), batch.decoder_ids, batch.decoder_mask)
    assert float((other - found).abs().min()) > 1e-3, "the latent must matter"


def test_the_loss_is_made_of_posterior_and_nll() -> None:
    vae = toy_vae()
    batch = vae.batch(LONG)
    out = vae(batch, beta=0.7, free_bits=0.2, generator=torch.Generator().manual_seed(5))
    q = vae.posterior(batch.encoder_ids, batch.encoder_mask)
    z = q.sample(torch.Generator().manual_seed(5))
    nll = vae.nll(z, batch.decoder_ids, batch.decoder_mask)
    kl = q.kl()
    torch.testing.assert_close(out.nll, nll)
    torch.testing.assert_close(out.kl, kl.sum(1))
    torch.testing.assert_close(out.loss, nll + 0.7 * (kl * (kl > 0.2)).sum(1))
    assert out.tokens.tolist() == [len(text.split()) + 1 for text in LONG]
    weighted = vae(batch, beta=0.0, length_weighted=True, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(weighted.loss, nll / (out.tokens + 1))


def test_deterministic_means_without_noise() -> None:
    vae = toy_vae()
    batch = vae.batch(LONG)
    q = vae.posterior(batch.encoder_ids, batch.encoder_mask)
    at_mean = vae.nll(q.mean, batch.decoder_ids, batch.decoder_mask)
    before = torch.get_rng_state()
    first, second = (vae(batch, beta=0.0, deterministic=True) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state()), "nothing is drawn"
    assert torch.equal(first.loss, second.loss)
    torch.testing.assert_close(first.nll, at_mean)
    assert not torch.equal(vae(batch).nll, vae(batch).nll), "otherwise there is noise"


def test_unit_variance_is_the_mode_of_the_release_without_a_learned_variance() -> None:
    vae = toy_vae()
    batch = vae.batch(LONG)
    out = vae(batch, beta=0.7, unit_variance=True, generator=torch.Generator().manual_seed(3))
    mean = vae.posterior(batch.encoder_ids, batch.encoder_mask).mean
    z = mean + torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(out.nll, vae.nll(z, batch.decoder_ids, batch.decoder_mask))
    torch.testing.assert_close(out.kl, 0.5 * mean.square().sum(1))
    torch.testing.assert_close(out.loss, out.nll + 0.7 * out.kl)


@pytest.mark.parametrize("options", [{}, {"deterministic": True}, {"unit_variance": True}])
def test_every_weight_gets_a_gradient(options: dict[str, bool]) -> None:
    vae = toy_vae("both").train()
    vae(vae.batch(TEXTS), beta=0.5, **options).loss.mean().backward()
    # Distributed training waits for each of them.
    assert [name for name, p in vae.named_parameters() if p.grad is None] == []
    assert float(vae.linear.weight.grad.abs().max()) > 0


def test_autocast_keeps_the_losses_in_float32() -> None:
    vae = toy_vae()
    batch = vae.batch(TEXTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q = vae.posterior(batch.encoder_ids, batch.encoder_mask)
        out = vae(batch, deterministic=True)
    assert {q.mean.dtype, q.logvar.dtype, out.loss.dtype, out.kl.dtype} == {torch.float32}
    torch.testing.assert_close(out.nll, vae(batch, deterministic=True).nll, rtol=0.1, atol=0.5)


def test_a_decoder_that_is_injected_already_is_taken_as_it_is() -> None:
    decoder = inject_latent(gpt2(), mode="both", latent_size=NZ, slots=2)
    vae = SentenceVAE(tiny_encoder("bert"), decoder, toy_tokenizers(), latent_size=NZ)
    assert vae.decoder is decoder
    assert vae.decoder.latent_spec.mode == "both"
    assert vae.max_length == 30, "32 positions, two of them for slots"


def test_the_length_is_what_both_networks_read() -> None:
    def length(**changes: Any) -> int:
        parts = {"encoder": tiny_encoder("bert"), "decoder": gpt2(), **changes}
        return SentenceVAE(parts["encoder"], parts["decoder"], toy_tokenizers()).max_length

    assert length() == 31  # GPT-2 has 32 positions, one for the slot
    assert length(decoder=decoder_of("gpt2")) == 40  # BERT has 40
    assert length(encoder=tiny_encoder("roberta"), decoder=decoder_of("gpt2")) == 38  # two are for padding
    assert length(encoder=tiny_encoder("t5"), decoder=decoder_of("llama")) == 64  # rotary
    assert length(encoder=tiny_encoder("t5"), decoder=decoder_of("t5")) == 512  # relative, both
    text = " ".join(["dogs"] * 60)
    vae = vae_with("roberta", "opt")
    assert bool(vae.encode([text]).mean.isfinite().all()), "the longest sentence fits"
    assert bool(vae.log_likelihood([text], iw=1).isfinite().all())


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_a_sentence_of_full_length_fits(family: str) -> None:
    vae = vae_with("bert", family)
    batch = vae.batch([" ".join(["dogs"] * 10_000)])
    assert batch.truncated == 1
    assert batch.decoder_ids.shape[1] == vae.max_length
    assert bool(vae(batch).loss.isfinite().all())
    text = vae.decode(torch.randn(1, NZ), max_new_tokens=10_000)
    assert len(text[0].split()) <= vae.max_length


def test_too_long_sentences_are_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    vae = toy_vae()
    vae.encode([" ".join(["dogs"] * 10_000), "a man", " ".join(["man"] * 99)])
    assert "2 of 3 sentences are longer than 31 tokens and lost their end" in caplog.text


def test_parts_that_do_not_fit_are_refused() -> None:
    bert, tokenizers = tiny_encoder("bert"), toy_tokenizers()
    with pytest.raises(ValueError, match=r"latent_size=4, and latent_size=32 is asked for"):
        SentenceVAE(bert, inject_latent(gpt2(), latent_size=4), tokenizers)
    with pytest.raises(ValueError, match=r"mode='memory', and mode='both' is asked for"):
        SentenceVAE(bert, inject_latent(gpt2()), tokenizers, mode="both")
    with pytest.raises(TypeError, match="encoder must be a model of transformers, got Linear"):
        SentenceVAE(nn.Linear(2, 2), gpt2(), tokenizers)
    with pytest.raises(TypeError, match="decoder must be a model of transformers, got Linear"):
        SentenceVAE(bert, nn.Linear(2, 2), tokenizers)
    with pytest.raises(TypeError, match="T5Model, which decodes as well; give only the encoder"):
        SentenceVAE(
            transformers.T5Model(transformers.T5Config(
                vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)),
            gpt2(), tokenizers,
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"the decoder embeds 10 tokens and its tokenizer has 17"):
        SentenceVAE(bert, decoder_of("gpt2", vocab_size=10), tokenizers)
    with pytest.raises(ValueError, match="pooling='pooler' cannot work: BertModel has no pooler"):
        SentenceVAE(tiny_encoder("bert without a pooler"), gpt2(), tokenizers, pooling="pooler")
    with pytest.raises(ValueError, match="pooling must be one of 'pooler', 'cls', 'mean', got 'max'"):
        SentenceVAE(bert, gpt2(), tokenizers, pooling="max")
    with pytest.raises(ValueError, match="max_length=33 is too long: the decoder has room for 31 tokens"):
        SentenceVAE(bert, gpt2(), tokenizers, max_length=33)
    with pytest.raises(ValueError, match="latent_size must be at least 1"):
        SentenceVAE(bert, gpt2(), tokenizers, latent_size=0)
    with pytest.raises(ValueError, match="width must be a multiple of heads, got 15 and 2"):
        SentenceVAE.from_scratch(tokenizers, width=15)


def test_damaged_weights_are_noticed() -> None:
    vae = toy_vae()
    with torch.no_grad():
        vae.linear.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"posterior of 3 sentence\(s\) is not finite, sentence 0 first"):
        vae.encode(TEXTS)


def test_latents_that_do_not_fit_the_batch_are_refused() -> None:
    vae = toy_vae()
    batch = vae.batch(TEXTS)
    with pytest.raises(ValueError, match=r"latent has 2 row\(s\) and the text 3"):
        vae.nll(torch.zeros(2, NZ), *batch[2:4])
    with pytest.raises(ValueError, match=r"must have the shape \(B, 6\).*, got \(3, 7\)"):
        vae.nll(torch.zeros(3, NZ + 1), *batch[2:4])


def test_bfloat16_works_throughout() -> None:
    vae = toy_vae()
    means = vae.encode(TEXTS).mean
    vae.bfloat16()
    torch.testing.assert_close(vae.encode(TEXTS).mean, means, rtol=0.1, atol=0.1)
    assert len(vae.reconstruct(TEXTS, max_new_tokens=4)) == 3
    assert bool(vae.log_likelihood(TEXTS, iw=3).isfinite().all())
    assert vae(vae.batch(TEXTS)).loss.dtype == torch.float32


def test_types_are_the_documented_ones() -> None:
    vae = toy_vae()
    assert isinstance(vae.batch(TEXTS), TextBatch)
    assert isinstance(vae.encode(TEXTS), Posterior)
    assert not vae.encode(TEXTS).mean.requires_grad
    assert vae.encode(TEXTS).mean.shape == (3, NZ)
