"""Options that the trainers of the dialog tasks, NDH and HANNA, have in common."""

from dataclasses import dataclass
from typing import Literal

from fq_toolkit.prevalent.feature_sources import SYNTHETIC
from fq_toolkit.training.errors import ConfigError

MINI = "mini"


@dataclass(frozen=True)
class NavigatorConfig:
    """What decides a run, whatever the task; goes to ``config.json`` and back."""

    preset: str = MINI
    """Where the other options start."""
    data: str = MINI
    """mini (generated worlds), or a folder with NDH_train.json .. or hanna_train.json .., by the task."""
    connectivity: str | None = None
    """Folder of SCAN_connectivity.json files; with a data folder only."""
    features: str = SYNTHETIC
    """File of view features (.tsv, .hdf5, .npz), or synthetic: noise per viewpoint, for trials only."""
    feature_dim: int = 64
    """Width of mini's and of synthetic features; of a file the width that is expected."""
    pretrained: str | None = None
    """Run of `train prevalent` whose model and vocabulary to start from; none trains from scratch."""
    limit: int | None = None
    """Use this many items of each split only, for trials."""
    seed: int = 0
    """Of weights, data order and choices."""
    world_seed: int = 0
    """mini: of the training world; the unseen world has another."""
    scans: int = 20
    """mini: buildings to train in."""
    train_items: int = 400
    """mini: items to train on."""
    validation_items: int = 100
    """mini: items of each validation split."""

    steps: int = 300
    """Updates."""
    batch_size: int = 32
    """Episodes per update."""
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
    """Scheduled sampling: share of steps in which the teacher acts, at the start."""
    teacher_end: float = 0.5
    """The same at the end; in between it falls linearly."""
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
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit is {self.limit}; expected at least 1")
        for name in ("checkpoint_every", "evaluate_every", "seed", "world_seed", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0 or more")
        for name in ("lr", "model_lr"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0 < {name} < 1")
        for name in ("teacher_start", "teacher_end"):
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
        if self.data == MINI and self.features != SYNTHETIC:
            raise ConfigError(f"mini makes its own features; leave out features {self.features!r}")
