"""Options of the pretraining, and the presets."""

from dataclasses import dataclass, replace
from typing import Literal

from fq_toolkit.prevalent.data.triplets import ActionLabel
from fq_toolkit.prevalent.files import is_record_file
from fq_toolkit.prevalent.model.config import PrevalentConfig
from fq_toolkit.prevalent.text.length_limit import InstructionLimit
from fq_toolkit.prevalent.world.features import (
    FEATURE_DIM,
    RELEASED_DIM,
    SYNTHETIC,
    check_columns,
)
from fq_toolkit.training.bounds import Fraction, NotNegative, Positive, PositiveShare, Rate, check_bounds
from fq_toolkit.training.config import find_preset
from fq_toolkit.training.errors import ConfigError

TRAINER = "prevalent"
MINIWORLD = "miniworld"


@dataclass(frozen=True)
class PretrainingConfig(InstructionLimit):
    """Everything that decides a run of ``train prevalent``; goes to ``config.json`` and back."""

    preset: str = MINIWORLD
    """Where the other options start."""
    data: str = MINIWORLD
    """miniworld (generated), a folder with R2R_train.json and R2R_val_*.json, or a file of triplets."""
    triplets: tuple[str, ...] = ()
    """Files of triplets (.json or .jsonl, also .gz), and folders of them, in place of data."""
    connectivity: str | None = None
    """Folder of SCAN_connectivity.json files; with real data only."""
    features: str = SYNTHETIC
    """File of view features (.tsv, .hdf5, .npz), or synthetic: noise per viewpoint, only for trials."""
    feature_dim: int | None = None
    """Width of generated and of synthetic features; of a file the width that is expected, by default that of
    the file."""
    feature_columns: int | None = None
    """Keep this many of the first columns of a file of features, 768 of 1768 for example."""
    vocabulary: str | None = None
    """vocab.txt of BERT or vocabulary.json; by default the words of the training instructions."""
    validation: str | None = None
    """File or folder of held-out triplets; only with triplets to train on, which must not hold any of their
    paths."""
    augmented: str | None = None
    """Synthesised training data: an R2R file as `augment` writes it, or a file or folder of triplets."""
    synthesised_share: Rate | None = None
    """Share of training steps that are synthesised; by default what the two files hold together."""
    action_label: ActionLabel = "candidate"
    """Numbering of actions: by nearness to the heading, by view, or pointing at candidates."""
    action_from: Literal["words", "cls"] = "words"
    """Where the action is read from: the mean of the word states, or, as released, the pooled [CLS]. The mean
    shows a small model in hundreds of updates which words go with which views; [CLS] takes far more."""
    seed: NotNegative[int] = 0
    """Of weights, data order and masks."""

    world_seed: NotNegative[int] = 0
    """miniworld: of the training worlds; the unseen ones have another."""
    scans: Positive[int] = 40
    """miniworld: buildings to train in."""
    train_items: Positive[int] = 3000
    """miniworld: paths with an instruction."""
    validation_items: Positive[int] = 100
    """miniworld: paths in unseen buildings."""

    hidden_size: Positive[int] = 64
    """Width of both streams."""
    num_heads: Positive[int] = 4
    """Attention heads."""
    text_layers: Positive[int] = 1
    """Layers that see only the text."""
    cross_layers: Positive[int] = 1
    """Cross-modal layers."""
    intermediate_size: Positive[int] = 128
    """Width inside the feed-forward blocks."""
    dropout: Fraction = 0.0
    """After embeddings and blocks, and on attention weights."""
    init_std: Positive[float] = 0.12
    """Standard deviation of the initial weights."""
    cross_init: NotNegative[float] = 0.05
    """Factor on the initial weights of what cross-modal layers add; near 0 they begin as the identity."""

    steps: Positive[int] = 2400
    """Updates; the learning rate decays linearly to 0 over them."""
    batch_size: Positive[int] = 64
    """Time steps of paths per update and process."""
    mask_share: PositiveShare = 0.15
    """Share of words to be predicted."""
    lr: Rate = 3e-3
    """AdamW learning rate at the start."""
    warmup: Fraction = 0.05
    """Share of the updates over which the learning rate rises first."""
    weight_decay: NotNegative[float] = 0.01
    """Of AdamW."""
    clip: Positive[float] = 1.0
    """Largest norm of the gradient."""
    loss_weights: tuple[NotNegative[float], NotNegative[float]] = (0.1, 1.0)
    """Of words and actions. The released preset weighs them equally; small models ground words sooner with
    less weight on words."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes the accelerator that is there."""

    log_every: Positive[int] = 50
    """Steps between rows of metrics.csv."""
    checkpoint_every: NotNegative[int] = 1200
    """Steps between checkpoints."""
    keep_checkpoints: Positive[int] = 2
    """Complete checkpoints that stay."""
    evaluate_every: NotNegative[int] = 600
    """Steps between evaluations; 0 evaluates only the last step."""
    select_by: Literal["loss", "accuracy"] = "loss"
    """Held-out figure by which the best checkpoint is kept beside the newest: the weighted loss of words and
    actions, or the accuracy of actions."""
    eval_steps: Positive[int] = 1000
    """Time steps of held-out paths per evaluation."""
    fine_tune: bool = True
    """miniworld: at the end fine-tune an agent for R2R and one from scratch, and compare them."""
    fine_tune_steps: Positive[int] = 400
    """Updates of each of them."""
    fine_tune_items: Positive[int] = 300
    """Instructions that they learn from."""

    def __post_init__(self) -> None:
        """Check ranges, so that a wrong value is refused before anything is built."""
        check_bounds(self)
        if not any(self.loss_weights):
            raise ConfigError(f"loss_weights are {self.loss_weights}; expected one of them above 0")
        if self.synthesised_share is not None and self.augmented is None:
            raise ConfigError("synthesised_share mixes two sources: give augmented too")
        check_columns(self.features, self.feature_dim, self.feature_columns)
        self._check_sources()

    def _check_sources(self) -> None:
        """Check which options belong to which data."""
        mini = self.generated
        if self.triplets and self.data != MINIWORLD:
            raise ConfigError(f"triplets stand in place of data: leave out data {self.data!r}, or triplets")
        if mini and self.features != SYNTHETIC:
            raise ConfigError(f"miniworld makes its own features; leave out features {self.features!r}")
        if mini and self.connectivity is not None:
            raise ConfigError("connectivity belongs to real data; miniworld makes its own graphs")
        if not mini and self.connectivity is None:
            raise ConfigError(f"data {self.source!r} needs connectivity, the folder with the graphs")
        if bool(self.triplet_sources) != (self.validation is not None):
            raise ConfigError(
                "validation is a file of held-out triplets, and a file of triplets needs it; got "
                f"data {self.source!r} and validation {self.validation!r}"
            )

    @property
    def triplet_sources(self) -> tuple[str, ...]:
        """Return the files and folders of triplets to train on; none with other data."""
        return self.triplets or ((self.data,) if is_record_file(self.data) else ())

    @property
    def generated(self) -> bool:
        """Return whether the worlds and instructions are generated."""
        return self.data == MINIWORLD and not self.triplets

    @property
    def source(self) -> str:
        """Return what is trained on, for messages."""
        return ", ".join(self.triplets) or self.data

    @property
    def synthetic_dim(self) -> int:
        """Return the width of features that are generated: by default small in small presets."""
        return self.feature_dim or (FEATURE_DIM if self.preset == MINIWORLD else RELEASED_DIM)

    def model_config(self, *, vocab_size: int, vision_size: int) -> PrevalentConfig:
        """Return the sizes of the model."""
        return PrevalentConfig(
            vocab_size=vocab_size,
            vision_size=vision_size,
            hidden_size=self.hidden_size,
            num_heads=self.num_heads,
            text_layers=self.text_layers,
            cross_layers=self.cross_layers,
            intermediate_size=self.intermediate_size,
            max_positions=max(512 if self.preset == "released" else 128, self.token_limit + 2),
            dropout=self.dropout,
            attention_dropout=self.dropout,
            init_std=self.init_std,
            cross_init=self.cross_init,
        )


PRESETS: dict[str, PretrainingConfig] = {
    MINIWORLD: PretrainingConfig(),
    # The released sizes; needs a GPU, the real graphs and features, and --vocabulary with BERT's vocab.txt.
    "released": replace(
        PretrainingConfig(),
        preset="released",
        long_instructions="cut",
        action_from="cls",
        action_label="prevalent",
        hidden_size=768,
        num_heads=12,
        text_layers=9,
        cross_layers=4,
        intermediate_size=3072,
        dropout=0.1,
        init_std=0.02,
        cross_init=1.0,
        steps=200_000,
        batch_size=96,
        lr=5e-5,
        warmup=0.0,
        loss_weights=(1.0, 1.0),
        log_every=100,
        checkpoint_every=5000,
        evaluate_every=5000,
        fine_tune=False,
    ),
}


def preset(name: str) -> PretrainingConfig:
    """Return a preset by its name, as `find_preset`."""
    return find_preset(PRESETS, name)
