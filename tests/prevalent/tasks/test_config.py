"""Options of the trainers of navigation."""

import dataclasses
from typing import Any

import pytest

from fq_toolkit.prevalent.tasks.hanna.config import HannaConfig
from fq_toolkit.prevalent.tasks.hanna.config import preset as hanna_preset
from fq_toolkit.prevalent.tasks.ndh.config import NDHConfig
from fq_toolkit.prevalent.tasks.ndh.config import preset as ndh_preset
from fq_toolkit.prevalent.tasks.pretraining.config import PretrainingConfig
from fq_toolkit.prevalent.tasks.r2r.config import preset as r2r_preset
from fq_toolkit.prevalent.tasks.speaker.config import SpeakerConfig
from fq_toolkit.prevalent.tasks.speaker.config import preset as speaker_preset
from fq_toolkit.prevalent.world.features import FEATURE_DIM
from fq_toolkit.training.errors import ConfigError


def test_what_is_pretrained_with_no_options_goes_on_with_no_options() -> None:
    configs = [preset("mini") for preset in (r2r_preset, ndh_preset, hanna_preset, speaker_preset)]
    known = {(c.synthetic_dim, c.world_seed) for c in (*configs, PretrainingConfig())}
    assert known == {(FEATURE_DIM, 0)}
    assert configs[3].data_options() == dataclasses.replace(
        r2r_preset("mini"), validation_items=configs[3].validation_items, feature_dim=FEATURE_DIM
    )


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (SpeakerConfig, {"hidden_size": 5}, "hidden_size is 5"),
        (SpeakerConfig, {"lr": 0.0}, "lr is 0.0"),
        (SpeakerConfig, {"feature_dropout": 1.0}, "feature_dropout is 1.0"),
        (SpeakerConfig, {"data": "folder"}, "connectivity belongs to a data folder"),
        (NDHConfig, {"steps": 0}, "steps is 0"),
        (NDHConfig, {"max_tokens": 79}, "max_tokens is 79; expected 1 to 78"),
        (NDHConfig, {"teacher_end": 1.5}, "teacher_end is 1.5"),
        (NDHConfig, {"connectivity": "folder"}, "connectivity belongs to a data folder"),
        (HannaConfig, {"uncertain": 2.0}, "uncertain is 2.0"),
        (HannaConfig, {"max_requests": -1}, "max_requests is -1"),
        (HannaConfig, {"routes": ("a.json",)}, "leave out routes"),
    ],
)
def test_impossible_options_are_refused(config: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**options)
