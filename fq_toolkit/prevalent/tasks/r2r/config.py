"""Options of the R2R trainer, and the presets."""

from dataclasses import dataclass, replace
from typing import Literal

from fq_toolkit.prevalent.tasks.config import MINI as MINI
from fq_toolkit.prevalent.tasks.config import NavigatorConfig
from fq_toolkit.prevalent.text.length_limit import InstructionLimit
from fq_toolkit.training.bounds import NotNegative, Share
from fq_toolkit.training.config import find_preset
from fq_toolkit.training.errors import ConfigError

TRAINER = "r2r"


@dataclass(frozen=True)
class R2RConfig(InstructionLimit, NavigatorConfig):
    """Everything that decides a run of ``train r2r``; goes to ``config.json`` and back."""

    steps: int = 700
    """Updates; the learning rates fall linearly to 0 over them."""
    model_lr: float | None = 1e-3
    """AdamW learning rate of the text and cross-modal layers at the start, pretrained or not."""

    augmented: str | None = None
    """R2R file of more training instructions, as `augment` writes it; every other batch is of these."""
    speaker: str | None = None
    """Run of `train speaker`: explore the val_unseen world before the test by back-translation with it."""
    explore_from: Share = 0.7
    """With a speaker: share of the steps after which every other batch is back-translated."""
    select_by: Literal["SPL", "SR"] = "SPL"
    """Score on val_unseen (val_seen without it) by which the best checkpoint is kept beside the newest."""
    blind: bool = False
    """Replace all view features by zeros, also in validation: what can be done without seeing."""
    shuffle_instructions: bool = False
    """Give every path the instruction of another, also in validation: what can be done without reading."""
    a2c_weight: NotNegative[float] = 0.0
    """Weight of the actor-critic loss beside imitation; 0 turns it off."""
    a2c_from: Share = 0.5
    """Share of the steps after which the actor-critic begins."""
    gamma: Share = 0.9
    """Discount of rewards."""
    entropy_weight: NotNegative[float] = 0.01
    """Weight of the policy's entropy."""

    def __post_init__(self) -> None:
        """Check ranges, so that a wrong value is refused before anything is built."""
        super().__post_init__()
        if self.speaker is not None and self.shuffle_instructions:
            raise ConfigError("shuffle_instructions and speaker do not go together: leave one of them out")


PRESETS: dict[str, R2RConfig] = {
    MINI: R2RConfig(),
    # The sizes of R2R-EnvDrop on real features; a GPU is needed.
    "r2r": replace(
        R2RConfig(),
        preset="r2r",
        long_instructions="cut",
        steps=80_000,
        batch_size=64,
        max_steps=35,
        lr=1e-4,
        model_lr=5e-6,
        a2c_weight=1.0,
        a2c_from=0.0,
        feature_dropout=0.4,
        hidden_size=512,
        cross_modal=True,
        dropout=0.5,
        log_every=100,
        checkpoint_every=2000,
        evaluate_every=2000,
    ),
}


def preset(name: str) -> R2RConfig:
    """Return a preset by its name, as `find_preset`."""
    return find_preset(PRESETS, name)
