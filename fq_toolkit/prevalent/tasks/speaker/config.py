"""Options of the speaker's trainer, and the presets."""

from dataclasses import dataclass, fields, replace

from fq_toolkit.prevalent.tasks.config import MINI, DataConfig, TrainerConfig
from fq_toolkit.prevalent.tasks.r2r.config import R2RConfig
from fq_toolkit.prevalent.text.length_limit import InstructionLimit
from fq_toolkit.prevalent.world.features import SYNTHETIC
from fq_toolkit.training.bounds import Positive
from fq_toolkit.training.config import find_preset

TRAINER = "speaker"


@dataclass(frozen=True)
class SpeakerConfig(InstructionLimit, TrainerConfig):
    """Everything that decides a run of ``train speaker``; goes to ``config.json`` and back."""

    batch_size: int = 32
    """Paths per update."""
    lr: float = 5e-3
    """AdamW learning rate at the start; it falls linearly to 0."""
    feature_dropout: float = 0.1
    """Environment dropout: share of feature channels that is missing in a batch."""
    hidden_size: int = 128
    """Of encoder and decoder."""
    word_size: Positive[int] = 64
    """Of word embeddings."""
    dropout: float = 0.2
    """Of states and words."""
    log_every: int = 20
    """Steps between rows of metrics.csv."""
    evaluate_every: int = 100
    """Steps between evaluations, the best of which is kept; 0 evaluates only the last step."""

    def data_options(self) -> R2RConfig:
        """Return the options of the data as `load_r2r_data` takes them: the agent's data is the speaker's."""
        options = {field.name: getattr(self, field.name) for field in fields(DataConfig)}
        del options["preset"]  # those of the trainers are different ones
        # The width of synthetic features goes with the preset, which the data do not know.
        width = self.synthetic_dim if self.features == SYNTHETIC else self.feature_dim
        return R2RConfig(**{**options, "feature_dim": width})


PRESETS: dict[str, SpeakerConfig] = {
    MINI: SpeakerConfig(),
    # The sizes of R2R-EnvDrop on real features; a GPU is needed.
    "r2r": replace(
        SpeakerConfig(),
        preset="r2r",
        long_instructions="cut",
        steps=80_000,
        batch_size=64,
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
    """Return a preset by its name, as `find_preset`."""
    return find_preset(PRESETS, name)
