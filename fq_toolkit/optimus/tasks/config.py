"""Options that every training of a sentence VAE has."""

from dataclasses import dataclass
from typing import Annotated, Literal

from fq_toolkit.training.bounds import Bounds, NotNegative, Positive, Rate, Share, at_least, check_bounds
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.session import FREE_ON_RESUME as ALWAYS_FREE

SMALL = "small"
# Options that a resumed run may change because they do not decide what is computed. ``steps`` does: beta and
# the learning rate depend on the share of the run that is done.
FREE_ON_RESUME = ALWAYS_FREE - {"steps"}


@dataclass(frozen=True)
class VAEConfig:
    """Networks, optimization, the schedule of beta and the run; goes to ``config.json`` and back."""

    preset: str = ""
    """Where the other options start."""
    data: str = ""
    """What to train on."""
    valid: str | None = None
    """What to measure with, in the same formats; by default a part of data that is kept from training."""
    limit: NotNegative[int] = 0
    """Train on the first so many rows; 0 for all."""
    max_length: Annotated[int, at_least(4)] = 32
    """Most tokens of a text, special ones included; rows with a longer one are left out and counted."""
    seed: Annotated[int, Bounds(0, 2**63 - 1)] = 0
    """Of weights, noise and data order."""
    steps: Positive[int] = 1200
    """Updates; beta and the learning rate follow schedules of this length."""

    encoder: str = SMALL
    """small (a BERT from scratch), or the name or folder of a pretrained encoder."""
    decoder: str = SMALL
    """small (a GPT-2 from scratch), or the name or folder of a pretrained decoder."""
    tokenizer: Literal["word", "subword"] = "word"
    """Tokenizer trained in place for networks from scratch: words and their endings, or byte-level BPE."""
    vocab_size: Annotated[int, Bounds(0, 2**31 - 1)] = 1000
    """Most tokens of a tokenizer trained in place."""
    layers: Positive[int] = 2
    """Layers of each network from scratch."""
    width: Positive[int] = 64
    """Channels of each network from scratch."""
    heads: Positive[int] = 4
    """Attention heads of each network from scratch."""
    dropout: Share = 0.0
    """Dropout of each network from scratch."""
    latent_size: Positive[int] = 32
    """Dimensions of the latent."""
    pooling: Literal["pooler", "cls", "mean"] = "mean"
    """Sentence vector of the encoder: BERT's pooled [CLS], the bare state of [CLS], or the mean."""
    init_std: NotNegative[float] = 0.1
    """Standard deviation of the weights to and from the latent at the start; the release has 0.02."""
    mode: Literal["memory", "embedding", "both"] = "memory"
    """How the decoder reads the latent."""

    batch_size: Positive[int] = 64
    """Rows per forward and process."""
    accumulate: Positive[int] = 1
    """Forwards per update, which is made from batch_size times this many rows."""
    lr: Rate = 2e-3
    """AdamW learning rate after its warm-up; cosine decay to a tenth."""
    lr_warmup: NotNegative[float] = 1 / 24
    """Share of the run over which the learning rate rises; from 1 on, a number of steps."""
    weight_decay: NotNegative[float] = 0.01
    """Weight decay of AdamW."""
    clip: NotNegative[float] = 1.0
    """Largest gradient norm; 0 does not clip."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision."""
    device: Literal["auto", "cpu"] = "auto"
    """auto uses an accelerator if there is one."""

    beta: NotNegative[float] = 1.0
    """Largest weight of the KL term."""
    beta_start: NotNegative[float] = 0.0
    """cyclical, monotonic: weight where a cycle or the rise begins."""
    schedule: Literal["constant", "monotonic", "cyclical"] = "cyclical"
    """Schedule of beta: constant; a linear rise, then constant; or n_cycle times 0, a rise, then constant."""
    n_cycle: Positive[int] = 1
    """Number of cycles."""
    ratio_zero: Share = 0.5
    """Share of a cycle with beta 0."""
    ratio_increase: Share = 0.25
    """Share of a cycle, or with monotonic of the run, over which beta rises."""
    free_bits: NotNegative[float] = 0.1
    """Nats of KL per dimension that are free; the paper's lambda."""
    length_weighted: bool = False
    """Divide the reconstruction loss of a text by its number of tokens."""

    log_every: Positive[int] = 50
    """Steps between rows of metrics.csv."""
    checkpoint_every: NotNegative[int] = 600
    """Steps between checkpoints."""
    keep_checkpoints: Positive[int] = 2
    """Newest checkpoints that are kept, beside the best one."""
    evaluate_every: NotNegative[int] = 0
    """Steps between evaluations; 0 evaluates only the last step."""

    def __post_init__(self) -> None:
        """Check ranges, so that a wrong value is refused before anything is built."""
        check_bounds(self)
        if self.warmup_steps > 1 and self.warmup_steps >= self.steps:
            raise ConfigError(
                f"lr_warmup is {self.lr_warmup:g}: the learning rate would still rise at the end of "
                f"{self.steps} steps. Take a share of the run, like 0.05, or train longer"
            )
        if self.width % self.heads:
            raise ConfigError(f"width {self.width} is not a multiple of heads {self.heads}")
        if (self.encoder == SMALL) != (self.decoder == SMALL):
            raise ConfigError(
                f"encoder is {self.encoder!r} and decoder {self.decoder!r}; expected both {SMALL!r} or both "
                "pretrained, as their tokenizers are then trained in place or come with them"
            )

    @property
    def warmup_steps(self) -> int:
        """Return the number of steps over which the learning rate rises."""
        return round(self.lr_warmup * self.steps if self.lr_warmup < 1 else self.lr_warmup)
