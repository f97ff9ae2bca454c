"""The scores of a model on a corpus against sums sentence by sentence."""

import math

import numpy as np
import pytest
import torch

from fq_toolkit.optimus.metrics.language_metrics import LanguageScores, measure_language
from fq_toolkit.optimus.metrics.latent_metrics import active_units, mutual_information
from fq_toolkit.optimus.model.sentence_noise import SentenceNoise
from fq_toolkit.optimus.tasks.vae.evaluation import Evaluation
from tests.optimus.toys import NZ, TEXTS, toy_vae

CORPUS = [*TEXTS, "two dogs", "the man rides in the snow . a girl runs .", "a girl"]


def scores(texts: list[str] = CORPUS, seed: int = 0, **options: int) -> LanguageScores:
    return measure_language(toy_vae(), texts, generator=torch.Generator().manual_seed(seed), **options)


def test_every_figure_is_the_sum_over_sentences_it_says_it_is() -> None:
    vae, found = toy_vae(), scores(draws=4)
    nll, other, kl = [], [], []
    others = SentenceNoise(CORPUS, torch.Generator().manual_seed(0)).others()
    assert sorted(others) == list(range(len(CORPUS)))
    assert all(row != mate for row, mate in enumerate(others))
    with torch.no_grad():
        means = torch.cat([vae.posterior(*vae.batch([text])[:2]).mean for text in CORPUS])
        for row, text in enumerate(CORPUS):  # one sentence at a time, hence without any padding
            batch = vae.batch([text])
            kl.append(float(vae.posterior(*batch[:2]).kl().sum()))
            nll.append(float(vae.nll(means[row][None], *batch[2:4])))
            other.append(float(vae.nll(means[others[row]][None], *batch[2:4])))
    assert math.isclose(found.reconstruction_from_mean, np.mean(nll), rel_tol=1e-5)
    assert math.isclose(found.reconstruction_from_other, np.mean(other), rel_tol=1e-5)
    assert math.isclose(found.kl, np.mean(kl), rel_tol=1e-5)
    assert math.isclose(found.negative_elbo, found.reconstruction + found.kl, rel_tol=1e-12)
    assert found.sentences == len(CORPUS)
    assert found.words == sum(len(text.split()) + 1 for text in CORPUS), "and the end of each"
    assert found.tokens == sum(len(text.split()) + 2 for text in CORPUS), "BOS and EOS of each"
    total = found.negative_log_likelihood * found.sentences
    assert math.isclose(found.ppl_per_bpe_token, math.exp(total / found.tokens), rel_tol=1e-12)
    assert math.isclose(found.ppl_per_word, math.exp(total / found.words), rel_tol=1e-12)
    assert found.ppl_per_word > found.ppl_per_bpe_token, "fewer words than tokens"
    assert found.active_units == active_units(vae.encode(CORPUS))
    source = torch.Generator().manual_seed(0)
    drawn = [SentenceNoise(CORPUS, source).normal(range(len(CORPUS)), 1, NZ)[0] for _ in range(2)][1]
    posterior = vae.encode(CORPUS)
    assert math.isclose(
        found.mutual_information, mutual_information(posterior, noise=drawn), rel_tol=1e-4, abs_tol=1e-5
    )
    # Of one draw a sentence, for a few sentences, an estimate may be below 0; on average it is not.
    seeds = [mutual_information(posterior, generator=source) for _ in range(200)]
    assert np.mean(seeds) > 0
    assert max(seeds) <= math.log(len(CORPUS)) + 1e-12
    assert (found.draws, found.left_out) == (4, 0)


def test_the_likelihood_is_that_of_log_likelihood_and_above_the_elbo() -> None:
    vae, found = toy_vae(), scores(draws=300)
    # Both are estimates from draws of their own.
    alone = -float(vae.log_likelihood(CORPUS, iw=300).mean())
    assert abs(found.negative_log_likelihood - alone) < 0.5
    assert found.negative_log_likelihood < found.negative_elbo


def test_batches_make_no_difference_where_nothing_is_drawn() -> None:
    one, all_at_once = scores(batch_size=1, draws=2), scores(batch_size=64, draws=2)
    for name in ("reconstruction_from_mean", "reconstruction_from_other", "kl"):
        assert math.isclose(getattr(one, name), getattr(all_at_once, name), rel_tol=1e-5)
    for name in ("sentences", "tokens", "words", "active_units"):
        assert getattr(one, name) == getattr(all_at_once, name)


def test_a_generator_makes_it_repeatable_and_dropout_is_off() -> None:
    vae = toy_vae(dropout=0.5).train()
    first, second = (
        measure_language(vae, CORPUS, draws=3, generator=torch.Generator().manual_seed(1)) for _ in range(2)
    )
    assert first == second
    assert vae.training
    assert scores(seed=1, draws=3).reconstruction != scores(seed=2, draws=3).reconstruction


def test_sentences_that_are_too_long_are_left_out_and_counted() -> None:
    endless = " ".join(["dogs"] * 10_000)
    edge = " ".join(["dogs"] * 29)  # 31 tokens with BOS and EOS, which is all that is read
    found = scores([endless, *CORPUS, edge, edge + " dogs"], draws=1)
    assert found.left_out == 2
    assert found.sentences == len(CORPUS) + 1
    assert found.words == sum(len(text.split()) + 1 for text in [*CORPUS, edge])


def test_a_decoder_that_ignores_the_latent_shows() -> None:
    vae = toy_vae()
    with torch.no_grad():
        for weight in vae.decoder.latent_injection.parameters():
            weight.zero_()
    found = measure_language(vae, CORPUS, draws=2)
    assert math.isclose(found.reconstruction_from_mean, found.reconstruction_from_other, rel_tol=1e-6)


def test_too_few_or_empty_sentences_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two sentences of up to 31 tokens are needed, got 1"):
        scores(["a man", " ".join(["dogs"] * 99)])
    with pytest.raises(ValueError, match="sentence 1 is empty"):
        scores(["a man", ""])


def test_a_hopeless_model_has_an_infinite_perplexity() -> None:
    vae = toy_vae()
    with torch.no_grad():
        vae.decoder.transformer.ln_f.weight.mul_(1e5)
    found = measure_language(vae, CORPUS, draws=1)
    assert found.ppl_per_word == math.inf
    assert math.isfinite(found.negative_log_likelihood)


def test_batches_and_order_change_nothing_but_the_rounding() -> None:
    """Draws included: with as few as these, others would be seen in the second digit."""
    vae = toy_vae()
    corpus = [
        f"{a} {b} {c} ."
        for a in ("a man", "two dogs", "girl")
        for b in ("rides", "in")
        for c in ("snow", "a")
    ]
    corpus += corpus[:3]  # one that comes again has other draws
    texts = {"as they are": corpus, "backwards": corpus[::-1], "shuffled": corpus[1::2] + corpus[::2]}
    found = [
        measure_language(vae, rows, draws=4, batch_size=size, generator=torch.Generator().manual_seed(3))
        for rows in texts.values()
        for size in (1, 5, 32)
    ]
    for scores in found[1:]:
        assert scores == pytest.approx(found[0], rel=1e-4, abs=1e-4)
    likely = [
        vae.log_likelihood(corpus, iw=4, batch_size=size, generator=torch.Generator().manual_seed(3))
        for size in (1, 5, 32)
    ]
    for other in likely[1:]:
        torch.testing.assert_close(other, likely[0], rtol=1e-5, atol=1e-5)
    assert (likely[0][:3] - likely[0][-3:]).abs().min() > 1e-3
    again = vae.log_likelihood(corpus[::-1], iw=4, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(again.sort().values, likely[0].sort().values, rtol=1e-5, atol=1e-5)


def test_unknown_words_stand_beside_the_perplexity_per_word() -> None:
    vae = toy_vae()
    known = measure_language(vae, CORPUS, draws=2)
    assert known.unknown == 0
    assert "not comparable" not in str(Evaluation(known, NZ, None))
    strange = [text.replace("a ", "zebra ") for text in CORPUS]
    found = measure_language(vae, strange, draws=2)
    count = sum(text.split().count("zebra") for text in strange)
    assert found.unknown == count / found.tokens > 0
    shown = str(Evaluation(found, NZ, None))
    assert f"per word (not comparable: {100 * found.unknown:.2g} % of the tokens are unknown words)" in shown
