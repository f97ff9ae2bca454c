"""Options of the FQ-GAN trainer, and the presets."""

from dataclasses import dataclass
from typing import Literal

from fq_toolkit.training.config import nearest
from fq_toolkit.training.errors import ConfigError

TRAINER = "fqgan"


@dataclass(frozen=True)
class FQGANConfig:
    """Everything that decides a run; goes to ``config.json`` and back."""

    preset: str = "digits"
    """Where the other options start."""
    data: str = "digits"
    """Dataset: digits (scikit-learn's, 16x16, comes with the package)."""
    seed: int = 0
    """Of weights, noise and data order."""
    steps: int = 700
    """Generator updates."""

    fq: Literal["none", "regularize", "straight_through"] = "regularize"
    """Feature quantization: off; the loss of the released code; or the paper's quantized features."""
    fq_layers: tuple[int, ...] = (0, 1, 2)
    """Discriminator blocks (from 0) whose output is quantized."""
    num_codes: int = 64
    """Dictionary size K of each layer."""
    commitment: float = 1.0
    """Weight of the commitment loss."""
    decay: float = 0.9
    """Moving average of the dictionary: the weight of the past."""
    fq_init: Literal["data", "kmeans", "normal"] = "data"
    """Start of the dictionary: rows of the first batch, k-means on it, or noise as in the release."""
    fq_warmup: int = 140
    """straight_through only: steps over which the strength of quantization rises from 0 to 1."""
    fq_revive: float = 0.0
    """Restart codes whose moving count falls below this; 0 never does."""
    fq_in_generator_loss: bool = True
    """Add the commitment of the fakes to the generator's loss, as released."""
    fq_update_in_generator_step: bool = False
    """Let the dictionary move in the generator's step too, as released."""

    channels: int = 32
    """Width: the first discriminator block and the last generator block."""
    latent_size: int = 64
    """Size of the noise z."""
    batch_size: int = 64
    """Real images per discriminator update and process; as many fakes."""
    d_steps: int = 1
    """Discriminator updates per generator update."""
    g_lr: float = 4e-4
    """Adam learning rate of the generator."""
    d_lr: float = 4e-4
    """Adam learning rate of the discriminator."""
    betas: tuple[float, float] = (0.0, 0.999)
    """Adam betas of both."""
    ema_decay: float = 0.99
    """Moving average of the generator's weights, with a ramp; it is what is sampled and evaluated."""
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
    evaluate_every: int = 200
    """Steps between evaluations; 0 evaluates only the last step."""
    eval_samples: int = 2000
    """Generated images per evaluation."""

    def __post_init__(self) -> None:
        """Check ranges, so that a wrong value is refused before anything is built."""
        positive = (
            "steps", "num_codes", "channels", "latent_size", "d_steps", "log_every", "keep_checkpoints",
        )  # fmt: skip
        for name in positive:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("checkpoint_every", "evaluate_every", "fq_warmup", "fq_revive", "commitment", "seed"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0 or more")
        for name in ("g_lr", "d_lr"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0 < {name} < 1")
        for name in ("decay", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0 <= {name} < 1")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas are {self.betas}; expected 0 <= beta < 1")
        if self.batch_size < 2:
            raise ConfigError(
                f"batch_size is {self.batch_size}; expected at least 2 (the generator has batch norm)"
            )
        if self.eval_samples < 2:
            raise ConfigError(f"eval_samples is {self.eval_samples}; expected at least 2")
        if len(set(self.fq_layers)) != len(self.fq_layers) or any(layer < 0 for layer in self.fq_layers):
            raise ConfigError(f"fq_layers are {self.fq_layers}; expected distinct block numbers from 0")


# Options that may change on resume: they decide how long and how closely one looks, not what is computed.
FREE_ON_RESUME = frozenset({"steps", "log_every", "checkpoint_every", "keep_checkpoints", "evaluate_every"})

PRESETS: dict[str, FQGANConfig] = {"digits": FQGANConfig()}


def preset(name: str) -> FQGANConfig:
    """Return a preset.

    Raises:
        ConfigError: for an unknown name, with the nearest known one.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; {nearest(name, list(PRESETS))}")
    return PRESETS[name]
