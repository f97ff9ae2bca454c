"""Options of the sentence-VAE trainer, and the presets."""

from dataclasses import dataclass
from typing import Literal

from fq_toolkit.training.config import nearest
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.session import FREE_ON_RESUME as ALWAYS_FREE

TRAINER = "optimus"
SMALL = "small"


@dataclass(frozen=True)
class OptimusConfig:
    """Everything that decides a run; goes to ``config.json`` and back."""

    preset: str = "grammar"
    """Where the other options start."""
    data: str = "grammar"
    """Sentences: grammar (embedded), a file (.txt, .jsonl, each also .gz), or datasets:NAME."""
    valid: str | None = None
    """Sentences to measure with; by default every twentieth of data, or the grammar's held-out ones."""
    text_key: str = "text"
    """Where the text is in a JSON line or a row of a dataset."""
    limit: int = 0
    """Train on the first so many sentences; 0 for all."""
    max_length: int = 32
    """Most tokens of a sentence, special ones included; longer ones are left out and counted."""
    seed: int = 0
    """Of weights, noise and data order."""
    steps: int = 2400
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
    """Sentences per forward and process."""
    accumulate: int = 1
    """Forwards per update: batch_size times this many sentences decide a step."""
    lr: float = 2e-3
    """AdamW learning rate after its warm-up; falls to a tenth along a cosine."""
    lr_warmup: int = 100
    """Steps over which the learning rate rises."""
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
    free_bits: float = 0.5
    """Nats of KL per dimension that cost nothing; the paper's lambda."""
    length_weighted: bool = False
    """Divide the reconstruction loss of a sentence by its tokens."""
    autoencoder_warmup: float = 0.2
    """Share of the run, at its start, as an autoencoder: no noise on the latent, and beta 0."""

    log_every: int = 50
    """Steps between rows of metrics.csv."""
    checkpoint_every: int = 600
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Complete checkpoints that stay."""
    evaluate_every: int = 600
    """Steps between evaluations; 0 evaluates only the last step."""
    eval_sentences: int = 400
    """Sentences per evaluation, spread over those kept for measuring."""
    iw_samples: int = 10
    """Draws per sentence of the importance-weighted likelihood, behind the perplexities."""
    eval_analogies: int = 300
    """Scored analogies per evaluation, on the grammar."""

    def __post_init__(self) -> None:
        """Check ranges, so that a wrong value is refused before anything is built."""
        positive = (
            "steps", "layers", "width", "heads", "latent_size", "batch_size", "accumulate", "n_cycle",
            "log_every", "keep_checkpoints", "eval_sentences", "iw_samples",
        )  # fmt: skip
        for name in positive:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1")
        not_negative = (
            "seed", "limit", "lr_warmup", "weight_decay", "clip", "beta", "free_bits",
            "checkpoint_every", "evaluate_every", "eval_analogies", "init_std",
        )  # fmt: skip
        for name in not_negative:
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if not 0 < self.lr < 1:
            raise ConfigError(f"lr is {self.lr}; expected 0 < lr < 1")
        for name in ("dropout", "ratio_zero", "ratio_increase", "autoencoder_warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0 to 1")
        if self.max_length < 4:
            raise ConfigError(f"max_length is {self.max_length}; expected at least 4")
        if self.width % self.heads:
            raise ConfigError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.eval_sentences < 2:
            raise ConfigError(f"eval_sentences is {self.eval_sentences}; expected at least 2")
        if (self.encoder == SMALL) != (self.decoder == SMALL):
            raise ConfigError(
                f"encoder is {self.encoder!r} and decoder {self.decoder!r}; expected both {SMALL!r} or both "
                "pretrained, as their tokenizers are then trained in place or come with them"
            )


# Of these options a resumed run may change those that do not decide what is computed. ``steps`` decides it:
# beta and the learning rate are functions of the share of the run that is done.
FREE_ON_RESUME = ALWAYS_FREE - {"steps"}

PRESETS: dict[str, OptimusConfig] = {
    "grammar": OptimusConfig(),
    "captions": OptimusConfig(
        preset="captions", data="../shared/data/captions/train.txt", tokenizer="subword", vocab_size=8000,
        max_length=48, width=256, layers=4, dropout=0.1, steps=20_000, lr=5e-4, lr_warmup=500, n_cycle=10,
        autoencoder_warmup=0.0, log_every=100, checkpoint_every=2000, evaluate_every=2000,
        eval_sentences=1000, iw_samples=100,
    ),
}  # fmt: skip


def preset(name: str) -> OptimusConfig:
    """Return a preset.

    Raises:
        ConfigError: for an unknown name, with the nearest known one.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; {nearest(name, list(PRESETS))}")
    return PRESETS[name]
