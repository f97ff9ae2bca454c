"""Options that every training of a sentence VAE has."""

from dataclasses import dataclass
from typing import Literal

from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.session import FREE_ON_RESUME as ALWAYS_FREE

SMALL = "small"
# Of these options a resumed run may change those that do not decide what is computed. ``steps`` decides it:
# beta and the learning rate are functions of the share of the run that is done.
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
    limit: int = 0
    """Train on the first so many rows; 0 for all."""
    max_length: int = 32
    """Most tokens of a text, special ones included; rows with a longer one are left out and counted."""
    seed: int = 0
    """Of weights, noise and data order."""
    steps: int = 1200
    """Updates; beta and the learning rate follow schedules of this length."""

    encoder: str = SMALL
    """small (a BERT from scratch), or the name or folder of a pretrained encoder."""
    decoder: str = SMALL
    """small (a GPT-2 from scratch), or the name or folder of a pretrained decoder."""
    tokenizer: Literal["word", "subword"] = "word"
    """Of networks from scratch, trained in place: words and their endings, or byte-level BPE."""
    vocab_size: int = 1000
    """Most tokens of a tokenizer trained in place."""
    layers: int = 2
    """Of each network from scratch."""
    width: int = 64
    """Channels of each network from scratch."""
    heads: int = 4
    """Attention heads of each network from scratch."""
    dropout: float = 0.0
    """Of each network from scratch."""
    latent_size: int = 32
    """Dimensions of the latent."""
    pooling: Literal["pooler", "cls", "mean"] = "mean"
    """Which vector of the encoder the latent is made of: BERT's pooled [CLS], bare [CLS], or the mean."""
    init_std: float = 0.1
    """Standard deviation of the weights to and from the latent at the start; the release has 0.02."""
    mode: Literal["memory", "embedding", "both"] = "memory"
    """How the decoder sees the latent."""

    batch_size: int = 64
    """Rows per forward and process."""
    accumulate: int = 1
    """Forwards per update: batch_size times this many rows decide a step."""
    lr: float = 2e-3
    """AdamW learning rate after its warm-up; falls to a tenth along a cosine."""
    lr_warmup: float = 1 / 24
    """Share of the run over which the learning rate rises; from 1 on, a number of steps."""
    weight_decay: float = 0.01
    """Of AdamW."""
    clip: float = 1.0
    """Largest gradient norm; 0 does not clip."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes the accelerator that is there."""

    beta: float = 1.0
    """Weight of the KL term where the schedule is at its top."""
    schedule: Literal["constant", "monotonic", "cyclical"] = "cyclical"
    """Of beta: there at once; a rise, then there; or n_cycle times 0, a rise, then there."""
    n_cycle: int = 1
    """cyclical: how many times."""
    ratio_zero: float = 0.5
    """cyclical: share of a cycle with beta 0."""
    ratio_increase: float = 0.25
    """cyclical, monotonic: share of a cycle, or of the run, over which beta rises."""
    free_bits: float = 0.1
    """Nats of KL per dimension that cost nothing; the paper's lambda."""
    length_weighted: bool = False
    """Divide the reconstruction loss of a text by its tokens."""

    log_every: int = 50
    """Steps between rows of metrics.csv."""
    checkpoint_every: int = 600
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Complete checkpoints that stay."""
    evaluate_every: int = 0
    """Steps between evaluations; 0 evaluates only the last step."""

    def __post_init__(self) -> None:
        """Check ranges, so that a wrong value is refused before anything is built."""
        at_least = {
            1: ("steps", "layers", "width", "heads", "latent_size", "batch_size", "accumulate", "n_cycle",
                "log_every", "keep_checkpoints"),
            4: ("max_length",),
            0: ("limit", "lr_warmup", "weight_decay", "clip", "beta", "free_bits", "checkpoint_every",
                "evaluate_every", "init_std"),
        }  # fmt: skip
        for least, names in at_least.items():
            self._expect_at_least(least, *names)
        if self.warmup_steps > 1 and self.warmup_steps >= self.steps:
            raise ConfigError(
                f"lr_warmup is {self.lr_warmup:g}: the learning rate would still rise at the end of "
                f"{self.steps} steps. Take a share of the run, like 0.05, or train longer"
            )
        self._expect_below(2**63, "seed")
        self._expect_below(2**31, "vocab_size")
        if not 0 < self.lr < 1:
            raise ConfigError(f"lr is {self.lr}; expected 0 < lr < 1")
        self._expect_shares("dropout", "ratio_zero", "ratio_increase")
        if self.width % self.heads:
            raise ConfigError(f"width {self.width} is not a multiple of heads {self.heads}")
        if (self.encoder == SMALL) != (self.decoder == SMALL):
            raise ConfigError(
                f"encoder is {self.encoder!r} and decoder {self.decoder!r}; expected both {SMALL!r} or both "
                "pretrained, as their tokenizers are then trained in place or come with them"
            )

    @property
    def warmup_steps(self) -> int:
        """Steps over which the learning rate rises."""
        return round(self.lr_warmup * self.steps if self.lr_warmup < 1 else self.lr_warmup)

    def _expect_at_least(self, least: int, *names: str) -> None:
        for name in names:
            if not least <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least {least}")

    def _expect_below(self, limit: int, *names: str) -> None:
        """Of what other libraries take as an unsigned integer of some width."""
        for name in names:
            if not 0 <= getattr(self, name) < limit:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0 to {limit - 1}")

    def _expect_shares(self, *names: str) -> None:
        for name in names:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0 to 1")
