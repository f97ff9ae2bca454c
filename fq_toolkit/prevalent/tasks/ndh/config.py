"""Options of the NDH trainer: navigation from dialog history."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from fq_toolkit.prevalent.tasks.config import MINI, NavigatorConfig
from fq_toolkit.prevalent.text.length_limit import InstructionLimit
from fq_toolkit.prevalent.text.vocabulary import LONGEST
from fq_toolkit.training.bounds import Bounds
from fq_toolkit.training.config import find_preset

TRAINER = "ndh"


@dataclass(frozen=True)
class NDHConfig(NavigatorConfig):
    """Everything that decides a run of ``train ndh``; goes to ``config.json`` and back."""

    target: Literal["planner", "player", "trusted"] = "trusted"
    """Whose path is learned: the planner's (shortest), the player's (what people walked), or the player's
    where it comes past the planner's goal and else the planner's."""
    max_tokens: Annotated[int, Bounds(1, LONGEST)] = LONGEST
    """Tokens that are read of a dialog; the oldest, on the left, are cut. Short texts are learned sooner."""

    @property
    def text_limits(self) -> InstructionLimit:
        """Return how long a dialog is after it was cut: nothing is left to refuse."""
        return InstructionLimit(self.max_tokens)


PRESETS: dict[str, NDHConfig] = {
    MINI: replace(NDHConfig(), steps=400, max_tokens=24, evaluate_every=100),
    # The sizes of the released code on real features; a GPU is needed.
    "cvdn": replace(
        NDHConfig(),
        preset="cvdn",
        steps=20_000,
        batch_size=100,
        max_steps=80,
        lr=1e-4,
        model_lr=2e-6,
        feature_dropout=0.3,
        hidden_size=512,
        cross_modal=True,
        dropout=0.5,
        log_every=100,
        checkpoint_every=1000,
        evaluate_every=1000,
    ),
}


def preset(name: str) -> NDHConfig:
    """Return a preset by its name, as `find_preset`."""
    return find_preset(PRESETS, name)
