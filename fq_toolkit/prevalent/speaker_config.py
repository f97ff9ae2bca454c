"""Options of the speaker's trainer, and the presets."""

from dataclasses import dataclass, replace
from typing import Literal

from fq_toolkit.prevalent.r2r_config import MINI, R2RConfig
from fq_toolkit.training.config import nearest
from fq_toolkit.training.errors import ConfigError

TRAINER = "speaker"


@dataclass(frozen=True)
class SpeakerConfig:
    """Everything that decides a run of ``train speaker``; goes to ``config.json`` and back."""

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
    limit: int | None = None
    """Use this many instructions of each split only, for trials."""
    seed: int = 0
    """Of weights, data order and dropout."""
    world_seed: int = 0
    """mini: of the training world; the unseen world has another. The same worlds as those of `train r2r`."""
    scans: int = 20
    """mini: buildings to train in."""
    train_items: int = 400
    """mini: instructions to train on."""
    validation_items: int = 200
    """mini: instructions of each validation split."""

    steps: int = 400
    """Updates."""
    batch_size: int = 32
    """Paths per update."""
    lr: float = 5e-3
    """AdamW learning rate at the start; it falls linearly to 0."""
    weight_decay: float = 0.01
    """Of AdamW."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    feature_dropout: float = 0.1
    """Environment dropout: share of feature channels that is missing in a batch."""
    hidden_size: int = 128
    """Of encoder and decoder."""
    word_size: int = 64
    """Of word embeddings."""
    dropout: float = 0.2
    """Of states and words."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes the accelerator that is there."""

    log_every: int = 20
    """Steps between rows of metrics.csv."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Complete checkpoints that stay."""
    evaluate_every: int = 100
    """Steps between evaluations, the best of which is kept; 0 evaluates only the last step."""

    def __post_init__(self) -> None:
        """Check ranges, so that a wrong value is refused before anything is built."""
        positive = ("steps", "batch_size", "word_size", "log_every", "keep_checkpoints", "clip")
        for name in positive:
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected more than 0")
        for name in ("checkpoint_every", "evaluate_every", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if not 0 < self.lr < 1:
            raise ConfigError(f"lr is {self.lr}; expected 0 < lr < 1")
        for name in ("dropout", "feature_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0 <= {name} < 1")
        if self.hidden_size < 2 or self.hidden_size % 2:
            raise ConfigError(f"hidden_size is {self.hidden_size}; expected an even number of at least 2")
        self.data_options()

    def data_options(self) -> R2RConfig:
        """Return the options of the data as `load_r2r_data` takes them: the agent's data is the speaker's.

        Raises:
            ConfigError: for values that do not fit.
        """
        return R2RConfig(
            data=self.data,
            connectivity=self.connectivity,
            features=self.features,
            feature_dim=self.feature_dim,
            limit=self.limit,
            seed=self.seed,
            world_seed=self.world_seed,
            scans=self.scans,
            train_items=self.train_items,
            validation_items=self.validation_items,
        )


PRESETS: dict[str, SpeakerConfig] = {
    MINI: SpeakerConfig(),
    # The sizes of R2R-EnvDrop on real features; a GPU is needed.
    "r2r": replace(
        SpeakerConfig(),
        preset="r2r",
        steps=80_000,
        batch_size=64,
        feature_dim=2048,
        lr=1e-4,
        feature_dropout=0.4,
        hidden_size=512,
        word_size=256,
        dropout=0.6,
        log_every=100,
        checkpoint_every=2000,
        evaluate_every=2000,
    ),
}


def preset(name: str) -> SpeakerConfig:
    """Return a preset.

    Raises:
        ConfigError: for an unknown name, with the nearest known one.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; {nearest(name, list(PRESETS))}")
    return PRESETS[name]
