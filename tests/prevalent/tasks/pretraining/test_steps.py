"""Time steps as arrays, and masked words."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit.prevalent import (
    BatchedNavEnv,
    MiniWorld,
    Vocabulary,
    collect_triplets,
)
from fq_toolkit.prevalent.tasks.pretraining.steps import PretrainingSteps, WordMasker
from tests.prevalent.tasks.pretraining.small import LABELS


@pytest.mark.parametrize("label", LABELS)
def test_steps_hold_what_an_environment_shows_on_the_way(label: str) -> None:
    world = MiniWorld(4)
    items, features = world.items(6), world.features()
    vocabulary = Vocabulary.train(item.instruction for item in items)
    triplets = collect_triplets(world, items, vocabulary.encode, kind=label)
    steps = PretrainingSteps(triplets, features, world if label == "candidate" else None)
    env = BatchedNavEnv(world, features, layout="blocked")
    number = 0
    for item in items:
        observation = env.reset([item])
        for target in [*item.path[1:], None]:
            batch = steps.batch(torch.tensor([number]))
            np.testing.assert_allclose(batch.views.numpy(), observation.view_features(), atol=1e-6)
            text = vocabulary.encode(item.instruction)
            assert batch.ids[0].tolist() == text[: batch.ids.shape[1]]
            assert not any(text[batch.ids.shape[1] :])
            scan = world.scan(item.scan)
            here = scan.locate(observation.viewpoints[0])
            slot = 0
            if target is not None:
                slot = 1 + int(np.nonzero(scan.neighbors[here] == scan.locate(target))[0][0])
            if label == "candidate":
                width = observation.action_mask.shape[1]
                assert batch.candidate_mask[0, :width].tolist() == observation.action_mask[0].tolist()
                np.testing.assert_allclose(
                    batch.candidates[:, :width].numpy(), observation.candidate_features(), atol=1e-5
                )
                assert batch.actions.item() == slot
            if target is not None:
                observation = env.step([slot]).observation
            number += 1
    assert number == len(steps)


def test_batches_are_cut_after_the_longest_instruction() -> None:
    world = MiniWorld(4)
    items = world.items(10)
    vocabulary = Vocabulary.train(item.instruction for item in items)
    steps = PretrainingSteps(collect_triplets(world, items, vocabulary.encode), world.features())
    batch = steps.batch(torch.arange(len(steps)))
    assert batch.ids.shape[1] == max(len(vocabulary.pieces(item.instruction)) for item in items) + 2
    assert batch.candidates is None


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
