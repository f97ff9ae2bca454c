"""Options of U-GAT-IT: warm-up and decay follow the run, and old files mean what they meant."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from fq_toolkit.fqgan.ugatit.config import PRESETS, UGATITConfig
from fq_toolkit.fqgan.ugatit.training import UGATIT_TRAINER, learning_rate
from fq_toolkit.training.config import load_config, save_config
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.session import dry_run
from tests.fqgan.ugatit.small import TINY

BEFORE = {
    "u-gat-it": (10_000, 500_000, 1_000_000),
    "u-gat-it-light": (10_000, 500_000, 1_000_000),
    "u-gat-it-tiny": (60, 150, 300),
}


def lengths(config: UGATITConfig) -> tuple[int, int, int]:
    return config.warmup_steps, *config.decay_steps


def test_presets_keep_their_lengths() -> None:
    assert {name: lengths(config) for name, config in PRESETS.items()} == BEFORE


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("steps", [2, 30, 1000, 2_000_000])
def test_the_rate_falls_over_the_second_half_of_any_run(name: str, steps: int) -> None:
    config = dataclasses.replace(PRESETS[name], steps=steps)
    rates = [learning_rate(config, step) / config.lr for step in (0, steps // 2, round(0.75 * steps), steps)]
    assert rates == pytest.approx([1, 1, 0.5, 0], abs=1 / steps)
    assert config.warmup_steps < steps


def test_an_old_configuration_means_the_same(tmp_path: Path) -> None:
    """Such files have whole numbers of steps, whatever the length of the run."""
    save_config(UGATITConfig(), tmp_path / "c.json", trainer="ugatit")
    for numbers in ((60, 150, 300), (10_000, 500_000, 1_000_000), (0, 0, 2), (1, 1, 5)):
        old = json.loads((tmp_path / "c.json").read_text())
        old |= dict(zip(("fq_warmup", "lr_decay_start", "lr_decay_end"), numbers, strict=True), steps=300)
        (tmp_path / "c.json").write_text(json.dumps(old))
        assert lengths(load_config(UGATITConfig, tmp_path / "c.json", trainer="ugatit")) == numbers


def test_a_warmup_as_long_as_the_run_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"fq_warmup is 4: .* end of 4 steps. Take a share of the run"):
        dry_run(UGATIT_TRAINER, dataclasses.replace(TINY, fq="straight_through", fq_warmup=4))
    assert dry_run(UGATIT_TRAINER, dataclasses.replace(TINY, fq_warmup=4))  # regularize has no strength


@pytest.mark.parametrize(
    ("start", "end"), [(0.6, 0.5), (0.5, 0.5), (9, 5), (0.5, 150), (301, 1.0), (-0.1, 1.0)]
)
def test_a_decay_that_ends_before_it_starts(start: float, end: float) -> None:
    with pytest.raises(
        ConfigError, match=r"lr_decay_start is .*, lr_decay_end .*; expected 0 <= start < end"
    ):
        UGATITConfig(lr_decay_start=start, lr_decay_end=end, steps=300)


def test_the_learning_rate_falls_linearly() -> None:
    config = dataclasses.replace(TINY, lr=1e-3, lr_decay_start=10, lr_decay_end=20)
    rates = [learning_rate(config, step) for step in (0, 10, 15, 20, 25)]
    assert rates == pytest.approx([1e-3, 1e-3, 5e-4, 0, 0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image_size": 24}, "image_size is 24; expected a power of two"),
        ({"fq_layers": (0, 3)}, "a global discriminator has convolutions 0 to 2"),
        ({"num_codes": (4,)}, r"num_codes are \(4,\); expected one size for each of \(0, 1\)"),
        ({"global_layers": 6}, "global_layers is 6; .* 16 pixels, halved 4 times, leave 4"),
        ({"lr_decay_start": 9}, "lr_decay_start is 9, lr_decay_end 5"),
    ],
)
def test_options_that_do_not_fit(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TINY, **changed)
