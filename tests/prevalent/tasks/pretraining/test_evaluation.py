"""Measuring the pretraining."""

import torch

from fq_toolkit.prevalent.tasks.pretraining.evaluation import score_steps
from tests.prevalent.tasks.pretraining.small import SMALL, task


def test_scoring_is_the_same_each_time_and_leaves_training_alone() -> None:
    pretraining = task(SMALL)
    state = torch.get_rng_state()
    first = score_steps(pretraining.network, pretraining.data.validation, pretraining.masker, limit=20)
    assert torch.equal(torch.get_rng_state(), state)
    second = score_steps(
        pretraining.network, pretraining.data.validation, pretraining.masker, limit=20, batch_size=7
    )
    assert first.steps == 20
    assert pretraining.network.training
    assert first.action_accuracy == second.action_accuracy  # masks differ with the batches, actions do not
