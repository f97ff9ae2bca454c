"""Writing sentences: greedy is the argmax of the model, always the same, cached, and always ends."""

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from fq_toolkit.optimus.metrics.language_metrics import measure_language
from fq_toolkit.optimus.model.sentence_vae import SentenceVAE
from tests.optimus.model.test_sentence_vae import DECODERS, vae_with
from tests.optimus.toys import NZ, TEXTS, toy_vae

Z = torch.randn(5, NZ, generator=torch.Generator().manual_seed(4)) * 2


def greedy_by_hand(vae: SentenceVAE, z: Tensor, tokens: int) -> str:
    """The most likely token again and again, each from the whole text before it."""
    bos, eos = vae.tokenizers.decoder.bos_token_id, vae.tokenizers.decoder.eos_token_id
    ids = torch.tensor([[bos]])
    with torch.no_grad():
        for _ in range(tokens):
            inputs: dict[str, Tensor] = {"input_ids": ids}
            if vae.decoder.config.is_encoder_decoder:
                inputs = {"input_ids": ids[:, :1], "decoder_input_ids": ids}
            best = int(vae.decoder(**inputs, latent=z[None], use_cache=False).logits[0, -1].argmax())
            if best == eos:
                break
            ids = torch.cat([ids, torch.tensor([[best]])], 1)
    written = [token for token in ids[0, 1:].tolist() if token not in (0, 1, 2)]  # PAD, BOS, EOS
    return vae.tokenizers.decoder.decode(written).strip()


def without_end(vae: SentenceVAE) -> None:
    """Make EOS unlikely, as an untrained model may say it at once."""
    with torch.no_grad():
        vae.decoder.get_output_embeddings().weight[vae.tokenizers.decoder.eos_token_id] *= 0.1


@pytest.mark.parametrize("family", DECODERS)
def test_greedy_is_the_argmax_of_the_model(family: str) -> None:
    vae = vae_with(decoder=family)
    without_end(vae)
    expected = [greedy_by_hand(vae, z, 9) for z in Z]
    assert vae.decode(Z, max_new_tokens=9) == expected
    assert len(set(expected)) > 1, "the latents must lead to different sentences"


def test_greedy_depends_on_nothing_but_the_latent() -> None:
    vae = toy_vae(dropout=0.5)
    expected = vae.decode(Z, max_new_tokens=12)
    for seed in range(3):
        torch.manual_seed(seed)
        assert vae.decode(Z, max_new_tokens=12) == expected
    vae.train()  # dropout
    assert vae.decode(Z, max_new_tokens=12) == expected
    assert vae.decode(Z, max_new_tokens=12, batch_size=2) == expected
    assert vae.decode(Z.flip(0), max_new_tokens=12) == expected[::-1]
    assert [vae.decode(z[None], max_new_tokens=12)[0] for z in Z] == expected


def test_a_checkpoint_that_likes_to_sample_is_greedy_too() -> None:
    plain = vae_with()
    decoder = vae_with().decoder
    decoder.generation_config.update(do_sample=True, temperature=1.9, top_p=0.6, repetition_penalty=3.0)
    vae = SentenceVAE(plain.encoder, decoder, plain.tokenizers, latent_size=NZ)
    assert vae.decode(Z, max_new_tokens=12) == plain.decode(Z, max_new_tokens=12)


def test_modes_of_modules_come_back() -> None:
    vae = toy_vae().train()
    vae.encoder.eval()  # frozen by the user
    before = [module.training for module in vae.modules()]
    vae.decode(Z, max_new_tokens=2)
    vae.encode(TEXTS)
    vae.log_likelihood(TEXTS, iw=1)
    assert [module.training for module in vae.modules()] == before
    with pytest.raises(ValueError, match="sentence 0 is empty"):
        vae.encode([" "])
    assert [module.training for module in vae.modules()] == before


def test_each_token_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, lengths = toy_vae(), []
    forward = type(vae.decoder.transformer).forward

    def watched(self: Any, input_ids: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        assert input_ids is not None
        lengths.append(input_ids.shape[1])
        return forward(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(type(vae.decoder.transformer), "forward", watched)
    vae.decode(Z, max_new_tokens=10)
    assert set(lengths) == {1}
    assert len(lengths) <= 10


def never_ending() -> SentenceVAE:
    """A model that never says EOS."""
    vae = toy_vae()
    with torch.no_grad():
        table = vae.decoder.transformer.wte.weight
        table[vae.tokenizers.decoder.eos_token_id] = 0
        vae.decoder.transformer.ln_f.bias[:] = table[5] * 50
    return vae


def test_it_ends_even_if_the_model_would_not() -> None:
    vae = never_ending()
    assert [len(text.split()) for text in vae.decode(Z, max_new_tokens=7)] == [7] * 5
    assert [len(text.split()) for text in vae.decode(Z[:1], max_new_tokens=10_000)] == [vae.max_length]


def test_nothing_is_written_after_the_end() -> None:
    vae = toy_vae()
    with torch.no_grad():  # EOS is always the best
        vae.decoder.transformer.ln_f.bias[:] = vae.decoder.transformer.wte.weight[2] * 50
    assert vae.decode(Z, max_new_tokens=9) == [""] * 5


def test_sampling_follows_the_distribution_of_the_model() -> None:
    vae = toy_vae()
    z = Z[:1]
    with torch.no_grad():
        logits = vae.decoder(torch.tensor([[1]]), latent=z).logits[0, 0] / 1.5
    expected = logits.softmax(0)
    vocabulary = vae.tokenizers.decoder.get_vocab()
    texts = vae.decode(z.expand(3000, -1), batch_size=3000, max_new_tokens=1, do_sample=True, temperature=1.5)
    for word in ("man", "dogs", "runs", "snow"):
        p = float(expected[vocabulary[word]])
        share = sum(text == word for text in texts) / 3000
        assert abs(share - p) < 5 * (p * (1 - p) / 3000) ** 0.5 + 1e-3
    # The rarest tokens too: transformers alone would keep the best 50.
    assert len(set(texts)) > 8


def test_options_of_generate_are_passed_on() -> None:
    vae = toy_vae()
    assert len(vae.decode(Z, max_new_tokens=4, num_beams=3, num_return_sequences=2)) == 10
    several = vae.decode(Z[:2], max_new_tokens=6, do_sample=True, num_return_sequences=8)
    assert len(several) == 16
    assert vae.decode(Z[:2], max_new_tokens=6, do_sample=True, top_k=1) == vae.decode(Z[:2], max_new_tokens=6)


def test_samples_from_the_prior() -> None:
    vae = toy_vae()
    drawn = vae.sample(4, generator=torch.Generator().manual_seed(3), max_new_tokens=8)
    z = torch.randn(4, NZ, generator=torch.Generator().manual_seed(3))
    assert drawn == vae.decode(z, max_new_tokens=8)
    assert len(vae.sample(1, max_new_tokens=3)) == 1
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        vae.sample(0)


def test_reconstruction_interpolation_and_analogy_come_from_the_means() -> None:
    vae = toy_vae()
    options = {"max_new_tokens": 8}
    means = vae.encode(TEXTS).mean
    ends = vae.reconstruct(TEXTS, **options)
    assert ends == vae.decode(means, **options)
    for kind in ("linear", "spherical"):
        path = vae.interpolate(TEXTS[0], TEXTS[1], steps=8, kind=kind, **options)
        assert len(path) == 8
        assert [path[0], path[-1]] == ends[:2]
    assert (
        vae.interpolate(TEXTS[0], TEXTS[1], 3, **options)[1]
        == vae.decode((means[0] + means[1])[None] / 2, **options)[0]
    )
    a, b, c = TEXTS
    assert vae.analogy(a, b, c, **options) == vae.decode((means[2] + means[1] - means[0])[None], **options)[0]
    assert vae.analogy(a, b, c, degree=0.0, **options) == ends[2]
    assert vae.analogy([a, b], [b, c], [c, a], **options) == [
        vae.analogy(a, b, c, **options), vae.analogy(b, c, a, **options)
    ]  # fmt: skip
    with pytest.raises(ValueError, match="three lists of one length, got 2, 1 and 1"):
        vae.analogy([a, b], [b], [c])


@pytest.mark.parametrize(
    ("z", "error", "message"),
    [
        (torch.zeros(2, NZ + 1), ValueError, r"shape \(N, 6\), got \(2, 7\)"),
        (torch.zeros(NZ), ValueError, r"shape \(N, 6\), got \(6,\)"),
        (torch.zeros(0, NZ), ValueError, r"shape \(N, 6\), got \(0, 6\)"),
        (torch.zeros(2, NZ, dtype=torch.long), TypeError, "got a tensor of torch.int64"),
        ([[0.0] * NZ], TypeError, "floating-point tensor .* got list"),
        (torch.tensor([[0.0] * NZ, [float("nan")] * NZ]), ValueError, r"row\(s\) \[1\] have a NaN"),
    ],
)
def test_bad_latents_are_refused(z: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        toy_vae().decode(z)


def test_double_latents_are_fine() -> None:
    vae = toy_vae()
    assert vae.decode(Z.double(), max_new_tokens=6) == vae.decode(Z, max_new_tokens=6)


def test_a_copy_is_another_model_that_writes_the_same() -> None:
    vae = toy_vae()
    expected = vae.decode(Z, max_new_tokens=8)
    twin = copy.deepcopy(vae)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.zero_()
    assert twin.decode(Z, max_new_tokens=8) == expected
    assert vae.decode(Z, max_new_tokens=8) != expected


@pytest.mark.gpu
def test_a_gpu_gives_what_a_cpu_gives() -> None:
    vae = toy_vae()
    posterior, texts = vae.encode(TEXTS), vae.decode(Z, max_new_tokens=8)
    likelihood = vae.log_likelihood(TEXTS, iw=20, generator=torch.Generator().manual_seed(0))
    vae.cuda()
    found = vae.encode(TEXTS)
    assert found.mean.is_cuda
    torch.testing.assert_close(found.mean.cpu(), posterior.mean, rtol=1e-3, atol=1e-3)
    assert vae.decode(Z, max_new_tokens=8) == texts
    again = vae.log_likelihood(TEXTS, iw=20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again, likelihood, rtol=1e-3, atol=1e-2)
    assert len(vae.sample(2, max_new_tokens=4)) == 2
    measured = measure_language(vae, TEXTS, draws=2)
    assert measured.sentences == len(TEXTS)


def test_an_option_that_generate_does_not_have_is_refused() -> None:
    vae = toy_vae()
    for call in (
        lambda **options: vae.decode(Z, **options),
        lambda **options: vae.reconstruct(TEXTS, **options),
        lambda **options: vae.sample(2, **options),
        lambda **options: vae.interpolate(TEXTS[0], TEXTS[1], **options),
        lambda **options: vae.analogy(*TEXTS, **options),
    ):
        with pytest.raises(TypeError, match=r"no option 'temprature'; did you mean 'temperature'\?"):
            call(temprature=0.5)
        for own in ("latent", "input_ids", "max_length"):
            with pytest.raises(TypeError, match=f"no option '{own}'"):
                call(**{own: 3})


class OnlyEven:
    """A processor of logits that leaves the tokens of even numbers."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, 1::2] = -float("inf")
        return scores


@pytest.mark.parametrize(
    "wrap", [lambda p: p, lambda p: [p], lambda p: transformers.LogitsProcessorList([p])]
)
def test_processors_of_logits_are_heard(wrap: Any) -> None:
    vae = toy_vae()
    without_end(vae)
    vocabulary = vae.tokenizers.decoder.get_vocab()
    texts = vae.decode(Z, max_new_tokens=6, logits_processor=wrap(OnlyEven()))
    assert all(vocabulary[word] % 2 == 0 for text in texts for word in text.split())
    assert texts != vae.decode(Z, max_new_tokens=6)


def test_criteria_stop_and_a_streamer_sees_every_token() -> None:
    vae = never_ending()

    def enough(input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.full((len(input_ids),), input_ids.shape[1] >= 4, dtype=torch.bool)

    assert [len(text.split()) for text in vae.decode(Z, stopping_criteria=[enough])] == [3] * 5

    class Heard(transformers.generation.streamers.BaseStreamer):
        def __init__(self) -> None:
            self.tokens, self.ends = 0, 0

        def put(self, value: Tensor) -> None:
            self.tokens += value.numel()

        def end(self) -> None:
            self.ends += 1

    heard = Heard()
    texts = vae.decode(Z[:2], max_new_tokens=3, streamer=heard)
    assert texts == vae.decode(Z[:2], max_new_tokens=3)
    assert (heard.ends, heard.tokens) == (2, 2 * (1 + 3))


def test_another_end_of_the_sentence() -> None:
    vae = never_ending()
    (text,) = vae.decode(Z[:1], max_new_tokens=6)
    word = text.split()[0]
    token = vae.tokenizers.decoder.convert_tokens_to_ids(word)
    for end in (token, [2, token]):
        assert vae.decode(Z[:1], max_new_tokens=6, eos_token_id=end) == [""]


def test_a_dict_and_a_config_of_generate_are_taken() -> None:
    vae = toy_vae()
    plain = vae.decode(Z, max_new_tokens=6)
    assert vae.decode(Z, max_new_tokens=6, return_dict_in_generate=True, output_scores=True) == plain
    config = transformers.GenerationConfig(max_new_tokens=6, do_sample=False)
    assert vae.decode(Z, generation_config=config) == plain
    assert config.eos_token_id is None, "the caller's own stays as it was"
    beams = transformers.GenerationConfig(max_new_tokens=6, num_beams=3, num_return_sequences=2)
    assert len(vae.decode(Z, generation_config=beams)) == 10
    assert len(vae.decode(Z, generation_config=beams, num_return_sequences=1)) == 5


def test_guidance_has_a_null_latent_per_sentence() -> None:
    vae = toy_vae()
    plain = vae.decode(Z, max_new_tokens=6)
    null = torch.randn(5, NZ)
    guided = vae.decode(Z, max_new_tokens=6, guidance_scale=3.0, null_latent=null)
    assert guided != plain
    assert vae.decode(Z, max_new_tokens=6, guidance_scale=3.0, null_latent=null, batch_size=2) == guided
    with pytest.raises(ValueError, match="null_latent has no effect without guidance_scale"):
        vae.decode(Z, null_latent=null)


def test_an_assistant_helps_and_changes_nothing() -> None:
    vae, draft = toy_vae(), copy.deepcopy(toy_vae(seed=1).decoder)
    plain = vae.decode(Z, max_new_tokens=6)
    assert vae.decode(Z, max_new_tokens=6, assistant_model=draft) == plain
