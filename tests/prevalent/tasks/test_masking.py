"""Masked words: their rates, and what is never masked."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit.prevalent import Vocabulary
from fq_toolkit.prevalent.tasks.pretraining.steps import WordMasker

TEXTS = ["go to the sofa , then turn left .", "walk past the lamp and stop ."]
VOCABULARY = Vocabulary.train(TEXTS)


def rows(count: int) -> torch.Tensor:
    return torch.tensor([VOCABULARY.encode(TEXTS[i % 2]) for i in range(count)])


def test_masks_have_the_published_rates() -> None:
    ids = rows(4000)
    hidden, labels = WordMasker(VOCABULARY, share=0.15)(ids)
    words = ids > VOCABULARY.mask
    chosen = labels >= 0
    assert chosen[words].float().mean().item() == pytest.approx(0.15, abs=0.006)
    share = chosen.sum().item()
    assert (hidden[chosen] == VOCABULARY.mask).sum().item() / share == pytest.approx(0.8, abs=0.02)
    same = (hidden[chosen] == ids[chosen]).sum().item() / share
    assert same == pytest.approx(0.1 + 0.1 / (len(VOCABULARY) - 5), abs=0.02)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999), share=st.sampled_from([0.15, 0.6, 1.0]))
def test_special_tokens_are_neither_chosen_nor_drawn(seed: int, share: float) -> None:
    torch.manual_seed(seed)
    ids = rows(20)
    hidden, labels = WordMasker(VOCABULARY, share=share)(ids)
    special = ids < 5
    assert (labels[special] == -1).all()
    assert torch.equal(hidden[special], ids[special])
    assert torch.equal(hidden[labels < 0], ids[labels < 0])
    assert torch.equal(labels[labels >= 0], ids[labels >= 0])
    drawn = hidden[~special]
    assert ((drawn >= 5) | (drawn == VOCABULARY.mask)).all()


def test_masks_are_fresh_each_time_and_follow_the_seed() -> None:
    masker, ids = WordMasker(VOCABULARY), rows(50)
    first, second = masker(ids), masker(ids)
    assert not torch.equal(first[1], second[1])
    torch.manual_seed(0)
    again = masker(ids)
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(again, masker(ids), strict=True))


def test_a_vocabulary_without_words_is_refused() -> None:
    with pytest.raises(ValueError, match="no words"):
        WordMasker(Vocabulary.train([]))
