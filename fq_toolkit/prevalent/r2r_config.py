"""Options of the R2R trainer, and the presets."""

from dataclasses import dataclass, replace
from typing import Literal

from fq_toolkit.training.config import nearest
from fq_toolkit.training.errors import ConfigError

TRAINER = "r2r"
MINI = "mini"


@dataclass(frozen=True)
class R2RConfig:
    """Everything that decides a run of ``train r2r``; goes to ``config.json`` and back."""

    preset: str = MINI
    """Where the other options start."""
    data: str = MINI
    """mini (generated worlds), or a folder with R2R_train.json, R2R_val_seen.json and R2R_val_unseen.json."""
    connectivity: str | None = None
    """Folder of SCAN_connectivity.json files; with a data folder only."""
    features: str = "synthetic"
    """File of view features (.tsv, .hdf5, .npz), or synthetic: noise per viewpoint, for trials only."""
    feature_dim: int = 64
    """Width of mini's and of synthetic features; of a file the width that is expected."""
    pretrained: str | None = None
    """Run of `train prevalent` whose model and vocabulary to start from; none trains from scratch."""
    augmented: str | None = None
    """R2R file of more training instructions, as `augment` writes it; every other batch is of these."""
    max_tokens: int | None = None
    """Refuse training instructions of more words; by default they are cut at 80 tokens."""
    limit: int | None = None
    """Use this many instructions of each split only, for trials."""
    seed: int = 0
    """Of weights, data order and choices."""

    world_seed: int = 0
    """mini: of the training world; the unseen world has another."""
    scans: int = 20
    """mini: buildings to train in."""
    train_items: int = 200
    """mini: instructions to train on."""
    validation_items: int = 200
    """mini: instructions of each validation split."""
    blind: bool = False
    """Replace all view features by zeros, also in validation: what can be done without seeing."""
    shuffle_instructions: bool = False
    """Give every path the instruction of another one, also in validation: what can be done without reading."""

    steps: int = 300
    """Updates."""
    batch_size: int = 32
    """Episodes per rollout."""
    max_steps: int = 10
    """Steps after which an episode ends."""
    lr: float = 2e-3
    """AdamW learning rate of the decoder."""
    model_lr: float = 1e-3
    """AdamW learning rate of the text and cross-modal layers."""
    weight_decay: float = 0.01
    """Of AdamW."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    teacher_start: float = 1.0
    """Share of steps in which the teacher acts in imitation, at the start."""
    teacher_end: float = 0.5
    """The same at the end; in between it falls linearly."""
    a2c_weight: float = 0.2
    """Weight of the actor-critic loss beside imitation; 0 turns it off."""
    a2c_from: float = 0.5
    """Share of the steps after which the actor-critic begins."""
    gamma: float = 0.9
    """Discount of rewards."""
    entropy_weight: float = 0.01
    """Weight of the policy's entropy."""
    feature_dropout: float = 0.0
    """Environment dropout: share of feature channels that is missing in a batch."""
    hidden_size: int = 64
    """Of the BiLSTM and the decoder."""
    text_layers: int = 1
    """Text layers of a model from scratch."""
    cross_layers: int = 1
    """Cross-modal layers of a model from scratch."""
    dropout: float = 0.1
    """Of states of the agent."""
    cross_modal: bool = True
    """Let the cross-modal layers look at every panorama; without them the decoder alone sees."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes the accelerator that is there."""

    log_every: int = 10
    """Steps between rows of metrics.csv."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Complete checkpoints that stay."""
    evaluate_every: int = 100
    """Steps between evaluations; 0 evaluates only the last step."""

    def __post_init__(self) -> None:
        """Check ranges, so that a wrong value is refused before anything is built."""
        positive = (
            "steps", "batch_size", "max_steps", "feature_dim", "scans", "train_items", "validation_items",
            "log_every", "keep_checkpoints", "text_layers", "cross_layers", "clip",
        )  # fmt: skip
        for name in positive:
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected more than 0")
        for name in ("limit", "max_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in (
            "checkpoint_every", "evaluate_every", "seed", "world_seed", "weight_decay", "a2c_weight",
            "entropy_weight",
        ):  # fmt: skip
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0 or more")
        for name in ("lr", "model_lr"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0 < {name} < 1")
        for name in ("teacher_start", "teacher_end", "a2c_from", "gamma"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0 <= {name} <= 1")
        for name in ("dropout", "feature_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0 <= {name} < 1")
        if self.hidden_size < 2 or self.hidden_size % 2:
            raise ConfigError(f"hidden_size is {self.hidden_size}; expected an even number of at least 2")
        if (self.data == MINI) != (self.connectivity is None):
            raise ConfigError(
                "connectivity belongs to a data folder, and a data folder needs it; got "
                f"data {self.data!r} and connectivity {self.connectivity!r}"
            )
        if self.data == MINI and self.features != "synthetic":
            raise ConfigError(f"mini makes its own features; leave out features {self.features!r}")


PRESETS: dict[str, R2RConfig] = {
    MINI: R2RConfig(),
    # The sizes of R2R-EnvDrop on real features; a GPU is needed.
    "r2r": replace(
        R2RConfig(),
        preset="r2r",
        steps=80_000,
        batch_size=64,
        max_steps=35,
        feature_dim=2048,
        lr=1e-4,
        model_lr=5e-6,
        a2c_weight=1.0,
        a2c_from=0.0,
        feature_dropout=0.4,
        hidden_size=512,
        dropout=0.5,
        log_every=100,
        checkpoint_every=2000,
        evaluate_every=2000,
    ),
}


def preset(name: str) -> R2RConfig:
    """Return a preset.

    Raises:
        ConfigError: for an unknown name, with the nearest known one.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; {nearest(name, list(PRESETS))}")
    return PRESETS[name]
