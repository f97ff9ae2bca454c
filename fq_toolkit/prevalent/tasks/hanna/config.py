"""Options of the HANNA trainer: finding things with the help of others."""

from dataclasses import dataclass, replace

from fq_toolkit.prevalent.tasks.config import MINI, NavigatorConfig
from fq_toolkit.prevalent.text.length_limit import InstructionLimit
from fq_toolkit.training.bounds import NotNegative, Share
from fq_toolkit.training.config import find_preset
from fq_toolkit.training.errors import ConfigError

TRAINER = "hanna"


@dataclass(frozen=True)
class HannaConfig(InstructionLimit, NavigatorConfig):
    """Everything that decides a run of ``train hanna``; goes to ``config.json`` and back."""

    routes: tuple[str, ...] = ()
    """Real data: R2R files whose paths and instructions the helper tells; without them nobody helps."""
    max_requests: NotNegative[int] = 3
    """Requests for help in an episode."""
    uncertain: Share = 0.6
    """Entropy of the actions, relative to the largest possible, above which it is right to ask."""
    ask_weight: NotNegative[float] = 1.0
    """Weight of the loss of the help-request module."""
    curiosity: NotNegative[float] = 1.0
    """Weight of the loss that discourages mistakes made before at the same place."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        if self.data == MINI and self.routes:
            raise ConfigError(f"mini helps by itself; leave out routes {self.routes}")


PRESETS: dict[str, HannaConfig] = {
    MINI: replace(HannaConfig(), steps=300, max_steps=12, evaluate_every=100),
    # The sizes of the released code on real features; a GPU is needed.
    "hanna": replace(
        HannaConfig(),
        preset="hanna",
        long_instructions="cut",
        steps=50_000,
        batch_size=32,
        max_steps=50,
        lr=1e-4,
        model_lr=5e-6,
        hidden_size=512,
        cross_modal=True,
        dropout=0.5,
        max_requests=10,
        log_every=100,
        checkpoint_every=2000,
        evaluate_every=2000,
    ),
}


def preset(name: str) -> HannaConfig:
    """Return a preset by its name, as `find_preset`."""
    return find_preset(PRESETS, name)
