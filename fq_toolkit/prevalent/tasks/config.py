"""Options that the trainers of speaker, R2R, NDH and HANNA share: data, training, and an agent that walks."""

from dataclasses import dataclass
from typing import Literal

from fq_toolkit.prevalent.text.length_limit import InstructionLimit
from fq_toolkit.prevalent.world.features import (
    FEATURE_DIM,
    RELEASED_DIM,
    SYNTHETIC,
    check_columns,
)
from fq_toolkit.training.bounds import Fraction, NotNegative, Positive, Rate, Share, check_bounds
from fq_toolkit.training.errors import ConfigError

MINI = "mini"


@dataclass(frozen=True)
class DataConfig:
    """What is trained and measured on: generated worlds, or annotations with their graphs and features."""

    preset: str = MINI
    """Where the other options start."""
    data: str = MINI
    """mini (generated worlds), or a folder with R2R_train.json .., NDH_train.json .. or hanna_train.json ..,
    by the task."""
    connectivity: str | None = None
    """Folder of SCAN_connectivity.json files; with a data folder only."""
    features: str = SYNTHETIC
    """File of view features (.tsv, .hdf5, .npz), or synthetic: noise per viewpoint, only for trials."""
    feature_dim: int | None = None
    """Width of generated and of synthetic features; of a file the width that is expected, by default that of
    the file."""
    feature_columns: int | None = None
    """Keep this many of the first columns of a file of features, 768 of 1768 for example."""
    limit: Positive[int] | None = None
    """Use this many items of each split only, for trials."""
    seed: NotNegative[int] = 0
    """Of weights, data order, dropout and choices."""
    world_seed: NotNegative[int] = 0
    """mini: of the training world; the unseen world has another. Equal for all trainers: the same worlds."""
    scans: Positive[int] = 20
    """mini: buildings to train in."""
    train_items: Positive[int] = 400
    """mini: items to train on."""
    validation_items: Positive[int] = 200
    """mini: items of each validation split."""

    def __post_init__(self) -> None:
        """Check ranges, so that a wrong value is refused before anything is built."""
        check_bounds(self)
        if (self.data == MINI) != (self.connectivity is None):
            raise ConfigError(
                "connectivity belongs to a data folder, and a data folder needs it; got "
                f"data {self.data!r} and connectivity {self.connectivity!r}"
            )
        # Generated worlds have graphs and features of their own, which a file could only contradict.
        check_columns(self.features, self.feature_dim, self.feature_columns)
        if self.data == MINI and self.features != SYNTHETIC:
            raise ConfigError(f"mini makes its own features; leave out features {self.features!r}")

    @property
    def synthetic_dim(self) -> int:
        """Return the width of features that are generated: by default small in small presets."""
        return self.feature_dim or (FEATURE_DIM if self.preset == MINI else RELEASED_DIM)


@dataclass(frozen=True)
class TrainerConfig(DataConfig):
    """What decides a run, whoever is trained; goes to ``config.json`` and back."""

    steps: Positive[int] = 400
    """Updates; the learning rates decay linearly to 0 over them."""
    batch_size: Positive[int] = 8
    """Items per update."""
    lr: Rate = 3e-3
    """AdamW learning rate at the start."""
    weight_decay: NotNegative[float] = 0.01
    """Of AdamW."""
    clip: Positive[float] = 1.0
    """Largest norm of the gradient."""
    feature_dropout: Fraction = 0.0
    """Environment dropout: share of feature channels that is missing in a batch."""
    hidden_size: int = 64
    """Of the BiLSTM and the decoder."""
    dropout: Fraction = 0.1
    """Of states."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes the accelerator that is there."""

    log_every: Positive[int] = 10
    """Steps between rows of metrics.csv."""
    checkpoint_every: NotNegative[int] = 200
    """Steps between checkpoints."""
    keep_checkpoints: Positive[int] = 2
    """Complete checkpoints that stay."""
    evaluate_every: NotNegative[int] = 0
    """Steps between evaluations; 0 evaluates only the last step."""

    def __post_init__(self) -> None:
        """Check the width beside the ranges."""
        super().__post_init__()
        if self.hidden_size < 2 or self.hidden_size % 2:
            raise ConfigError(f"hidden_size is {self.hidden_size}; expected an even number of at least 2")


@dataclass(frozen=True)
class NavigatorConfig(TrainerConfig):
    """What decides a run of an agent that walks, whatever its task."""

    pretrained: str | None = None
    """Run of `train prevalent` whose model and vocabulary to start from; none trains from scratch."""
    max_steps: Positive[int] = 10
    """Steps after which an episode ends."""
    model_lr: Rate | None = None
    """AdamW learning rate of the text and cross-modal layers at the start; by default 1e-3 for pretrained
    ones, which have little to learn, and 3e-3 for fresh ones."""
    teacher_start: Share = 1.0
    """Scheduled sampling: share of steps in which the teacher acts, at the start."""
    teacher_end: Share = 0.5
    """The same at the end; the share changes linearly in between."""
    cross_modal: bool = False
    """Let the cross-modal layers, not only the decoder, see every panorama, at three times the cost."""
    text_layers: Positive[int] = 1
    """Text layers of a model from scratch."""
    cross_layers: Positive[int] = 1
    """Cross-modal layers of a model from scratch."""

    @property
    def text_limits(self) -> InstructionLimit:
        """Return how long a text may be; a task of instructions or dialogs says it."""
        return InstructionLimit()

    @property
    def encoder_lr(self) -> float:
        """Return the learning rate of the text and cross-modal layers at the start."""
        if self.model_lr is not None:
            return self.model_lr
        return 3e-3 if self.pretrained is None else 1e-3
