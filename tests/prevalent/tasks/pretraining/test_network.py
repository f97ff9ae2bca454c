"""One network for words and actions."""

import dataclasses

import torch

from fq_toolkit.prevalent.tasks.pretraining.config import preset
from fq_toolkit.prevalent.tasks.pretraining.evaluation import score_steps
from fq_toolkit.prevalent.tasks.pretraining.network import PretrainingNetwork
from tests.prevalent.tasks.pretraining.small import SMALL, task


def test_one_forward_learns_both_tasks() -> None:
    config = dataclasses.replace(SMALL, action_label="candidate", steps=60, lr=5e-3, batch_size=32)
    pretraining = task(config)
    before = score_steps(pretraining.network, pretraining.data.train, pretraining.masker, limit=100)
    for step in range(config.steps):
        values = pretraining.step(step)
    after = score_steps(pretraining.network, pretraining.data.train, pretraining.masker, limit=100)
    assert after.mlm_loss < 0.8 * before.mlm_loss
    assert after.action_loss < 0.8 * before.action_loss
    assert after.word_accuracy > before.word_accuracy
    torch.testing.assert_close(values["loss/total"], values["loss/words"] + values["loss/action"])


def test_the_released_preset_has_the_released_size() -> None:
    config = preset("released")
    with torch.device("meta"):
        network = PretrainingNetwork(config, vocab_size=30522, vision_size=2048 + 128)
    assert sum(weight.numel() for weight in network.parameters()) == 156_701_022
