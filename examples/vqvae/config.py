"""Options: a frozen dataclass whose ranges stand beside the types. It becomes `config.json` and the help."""

from dataclasses import dataclass
from typing import Literal

from fq_toolkit.training.bounds import Fraction, NotNegative, Positive, Rate, check_bounds


@dataclass(frozen=True)
class VQVAEConfig:
    """Everything that decides a run."""

    data: str = "digits"
    """What to train on: digits, scikit-learn's 8x8 images."""
    seed: int = 0
    """Of weights and data order."""
    batch_size: Positive[int] = 64
    """Images per update."""
    channels: Positive[int] = 32
    """Width of encoder and decoder, and dimensions of a code."""
    num_codes: Positive[int] = 64
    """Dictionary size K."""
    decay: Fraction = 0.95
    """Moving average of the dictionary: the weight of the past."""
    commitment: NotNegative[float] = 0.25
    """Weight beta of the commitment loss."""
    lr: Rate = 2e-3
    """AdamW learning rate."""

    # What every trainer has: the loop asks for these.
    steps: Positive[int] = 300
    """Updates."""
    log_every: Positive[int] = 20
    """Steps between rows of metrics.csv."""
    checkpoint_every: NotNegative[int] = 100
    """Steps between checkpoints."""
    keep_checkpoints: Positive[int] = 2
    """Complete checkpoints that stay, beside the best."""
    evaluate_every: NotNegative[int] = 100
    """Steps between evaluations; 0 evaluates only the last step."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes the accelerator that is there."""

    def __post_init__(self) -> None:
        """Check ranges, so that a wrong value is refused before anything is built."""
        check_bounds(self)
