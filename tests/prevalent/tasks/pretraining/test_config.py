"""Options of the pretraining."""

import dataclasses

import pytest

from fq_toolkit.prevalent.tasks.pretraining.config import preset
from fq_toolkit.training.errors import ConfigError
from tests.prevalent.tasks.pretraining.small import SMALL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_share": 0.0}, "mask_share is 0.0"),
        ({"lr": 1.0}, "lr is 1.0"),
        ({"loss_weights": (0.0, 0.0)}, "loss_weights are"),
        ({"synthesised_share": 0.5}, "give augmented too"),
        ({"augmented": "a.json", "synthesised_share": 1.0}, "0 < synthesised_share < 1"),
        ({"features": "a.npz"}, "miniworld makes its own features"),
        ({"connectivity": "c"}, "connectivity belongs to real data"),
        ({"data": "folder"}, "needs connectivity"),
        ({"fine_tune_steps": 0}, "fine_tune_steps is 0"),
    ],
)
def test_impossible_options_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SMALL, **change)
    with pytest.raises(ConfigError, match="did you mean 'released'"):
        preset("releasd")
