"""Lengths that follow the run: shares of its steps, or steps, as older runs have them."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fq_toolkit import FeatureQuantizer
from fq_toolkit.fqgan.gan.config import PRESETS, FQGANConfig, in_steps
from fq_toolkit.fqgan.gan.networks.quantization import quantizer_factory, warmup_strength
from fq_toolkit.fqgan.gan.training import GAN_TRAINER, train
from fq_toolkit.training.config import load_config, save_config
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.session import dry_run

# Of every preset at its own length; mnist and cifar10-small have their own, all others those of the digits.
BEFORE = dict.fromkeys(PRESETS, 140) | {"mnist": 200, "cifar10-small": 400}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_warms_up_as_long_as_ever_at_its_own_length(name: str) -> None:
    assert PRESETS[name].fq_warmup < 1
    assert PRESETS[name].warmup_steps == BEFORE[name]


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("steps", [1, 30, 150, 3000])
def test_quantization_reaches_its_strength_in_a_run_of_any_length(name: str, steps: int) -> None:
    assert dataclasses.replace(PRESETS[name], steps=steps).warmup_steps < steps


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 10**6))
def test_a_share_follows_the_run(share: float, steps: int) -> None:
    assert 0 <= in_steps(share, steps) < steps
    assert abs(in_steps(share, steps) - share * steps) <= (0.5 if in_steps(share, steps) < steps - 1 else 1)
    assert in_steps(share, steps) <= in_steps(share, steps + 1)


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_from_one_on_it_is_a_number_of_steps(length: int, steps: int) -> None:
    assert in_steps(length, steps) == length


@pytest.mark.parametrize("length", [1, 3, 140, 10_000])
def test_an_old_configuration_means_the_same(tmp_path: Path, length: int) -> None:
    """Such files have whole numbers of steps, also more than the run has."""
    save_config(FQGANConfig(fq="straight_through", steps=100), tmp_path / "c.json", trainer="fqgan")
    old = json.loads((tmp_path / "c.json").read_text()) | {"fq_warmup": length}
    (tmp_path / "c.json").write_text(json.dumps(old))
    assert load_config(FQGANConfig, tmp_path / "c.json", trainer="fqgan").warmup_steps == length


@pytest.mark.parametrize("length", [4, 140])
def test_a_warmup_as_long_as_the_run_is_refused(tiny: FQGANConfig, tmp_path: Path, length: float) -> None:
    config = dataclasses.replace(tiny, fq="straight_through", fq_warmup=length)
    message = (
        rf"fq_warmup is {length:g}: .* end of 4 steps. Take a share of the run, like 0\.2, or train longer"
    )
    for use in (lambda: train(config, out=tmp_path / "run"), lambda: dry_run(GAN_TRAINER, config)):
        with pytest.raises(ConfigError, match=message):
            use()
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("small_and_plain")
@pytest.mark.parametrize("fq", ["none", "regularize"])
def test_a_warmup_that_nothing_follows_is_not_looked_at(tiny: FQGANConfig, fq: str) -> None:
    assert dry_run(GAN_TRAINER, dataclasses.replace(tiny, fq=fq, fq_warmup=140))


@pytest.mark.parametrize("length", [-1, -0.1, float("inf")])
def test_a_length_that_is_none(length: float) -> None:
    with pytest.raises(ConfigError, match=r"fq_warmup is .*; expected 0 or more, and finite"):
        FQGANConfig(fq_warmup=length)


def test_warm_up_is_a_ramp() -> None:
    steps = (0, 1, 2, 4, 9)
    assert [warmup_strength(step, warmup=4, strength=1.0) for step in steps] == [0, 0.25, 0.5, 1, 1]
    assert [warmup_strength(step, warmup=4, strength=0.5) for step in steps] == [0, 0.125, 0.25, 0.5, 0.5]
    assert warmup_strength(0, warmup=0, strength=1.0) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0; expected at least 1"),
        ({"decay": 1.0}, "decay is 1.0; expected 0 <= decay < 1"),
        ({"fq_strength": 1.5}, "fq_strength is 1.5; expected 0 < fq_strength <= 1"),
        ({"g_lr": 0.0}, "g_lr is 0.0"),
        ({"g_lr": float("nan")}, "g_lr is nan"),
        ({"commitment": -1.0}, "commitment is -1.0; expected 0 or more"),
        ({"commitment": math.inf}, "commitment is inf; expected 0 or more, and finite"),
        ({"r1_weight": math.nan}, "r1_weight is nan; expected 0 or more, and finite"),
        ({"commitment": float("nan")}, "commitment is nan"),
        ({"betas": (0.0, 1.0)}, "betas are"),
        ({"batch_size": 1}, "at least 2"),
        ({"eval_samples": 1}, "at least 2"),
        ({"fq_layers": (1, 1)}, "distinct block numbers"),
        ({"accumulate": 0}, "accumulate is 0; expected at least 1"),
        ({"style_mixing": 1.5}, "style_mixing is 1.5; expected 0 to 1"),
        ({"path_weight": 2.0}, "path_weight needs a generator with styles"),
        ({"image_size": 24}, "image_size is 24; expected 0 or 8, 16"),
    ],
)
def test_options_out_of_range(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FQGANConfig(**options)


@pytest.mark.parametrize("threshold", [0.1, 5.0])
def test_codes_restart_below_a_count_as_ever(tiny: FQGANConfig, threshold: float) -> None:
    """Runs have the option as a number of features, which the layer's own shares of the mean are not."""
    make = quantizer_factory(dataclasses.replace(tiny, fq_revive=threshold))
    assert make is not None
    layer = make(4)
    assert isinstance(layer, FeatureQuantizer)
    assert (layer.revive, layer.revive_by) == (threshold, "count")
