"""What pretraining is worth."""

import dataclasses

import torch

from fq_toolkit.prevalent.tasks.pretraining.benefit import measure_benefit
from tests.prevalent.tasks.pretraining.small import SMALL, task


def test_fine_tuning_compares_two_agents_and_changes_neither_model_nor_random_state() -> None:
    config = dataclasses.replace(
        SMALL, fine_tune=True, fine_tune_steps=2, fine_tune_items=20, action_label="candidate"
    )
    pretraining = task(config)
    for step in range(4):
        pretraining.step(step)
    model, state = pretraining.network.model, torch.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    benefit = measure_benefit(config, model, pretraining.data.vocabulary)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert (benefit.steps, benefit.instructions) == (2, 200)
    assert benefit.pretrained != benefit.scratch
    assert 0 <= benefit.pretrained.SPL <= benefit.pretrained.SR <= 1
    assert "from scratch SR" in str(benefit)
