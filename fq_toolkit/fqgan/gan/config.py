"""Options of the FQ-GAN trainer, and the presets."""

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from fq_toolkit.training.bounds import (
    Fraction,
    NotNegative,
    Positive,
    PositiveShare,
    Rate,
    Share,
    at_least,
    check_bounds,
)
from fq_toolkit.training.config import find_preset
from fq_toolkit.training.errors import ConfigError

TRAINER = "fqgan"


def image_fit(crop: bool, resize: bool) -> Literal["crop", "resize", "auto"]:
    """Return how images that are not square become square.

    Raises:
        ConfigError: when both are asked for.
    """
    if crop and resize:
        raise ConfigError("crop and resize do different things to images that are not square: give one")
    return "crop" if crop else "resize" if resize else "auto"


def in_steps(length: float, steps: int) -> int:
    """Return the length of a warm-up in steps.

    Args:
        length: below 1 a share of the run, which leaves a step of it at least; from 1 on a number of steps.
        steps: of the run.
    """
    return min(round(length * steps), steps - 1) if length < 1 else round(length)


def check_warmup(config: Any) -> None:
    """Refuse to train with a warm-up as long as the run.

    This is not a check of the options when they are read: older runs have such warm-ups and can still be
    looked at.

    Args:
        config: options with ``fq``, ``fq_warmup``, ``warmup_steps`` and ``steps``.

    Raises:
        ConfigError: saying what was given and what to do.
    """
    if config.fq == "straight_through" and config.warmup_steps >= config.steps:
        raise ConfigError(
            f"fq_warmup is {config.fq_warmup:g}: quantization would still get stronger at the end of "
            f"{config.steps} steps. Take a share of the run, like 0.2, or train longer"
        )


@dataclass(frozen=True)
class FQGANConfig:
    """Everything that decides a run, as ``config.json`` holds it."""

    preset: str = "digits"
    """Where the other options start."""
    family: Literal["residual", "biggan", "stylegan2"] = "residual"
    """Networks and losses: a small residual GAN, BigGAN for 32, 64, 128 or 256 pixels, StyleGAN2."""
    data: str = "digits"
    """Images: a folder or file, or digits (scikit-learn's, 16x16, which come with the package)."""
    image_size: NotNegative[int] = 0
    """Scale and crop the images to this size in pixels; 0 leaves them as they are."""
    crop: bool = False
    """Images that are not square: scale the shorter side and cut out the middle, without a warning."""
    resize: bool = False
    """Images that are not square: scale both sides, which squeezes them."""
    skip_damaged: bool = False
    """Leave out pictures that cannot be read, and count and name them, instead of refusing the folder."""
    nested: bool = False
    """Take all pictures below the folder, however deep, without classes."""
    conditional: bool = True
    """Use the classes of the images."""
    flip: bool = False
    """Mirror half of the real images."""
    train_images: NotNegative[int] = 0
    """Train on this many of the images, drawn by the seed; 0 takes all. Metrics always use all of them."""
    extractor: str = "auto"
    """What measures images: auto, digits-cnn, cifar-cnn, data-cnn, random-cnn, or NAME:TORCHSCRIPT_FILE."""
    seed: NotNegative[int] = 0
    """Of weights, noise and data order."""
    steps: Positive[int] = 700
    """Generator updates."""

    fq: Literal["none", "regularize", "straight_through"] = "none"
    """Feature quantization: off, which is best for small GANs; only the released loss, as in the presets of
    the paper's models; or the paper's quantized features."""
    fq_layers: tuple[int, ...] = (0, 1, 2)
    """Discriminator blocks whose output is quantized, from 0; negative numbers count from the last."""
    num_codes: Positive[int] = 64
    """Dictionary size K of each layer."""
    commitment: NotNegative[float] = 1.0
    """Weight of the commitment loss."""
    decay: Fraction = 0.9
    """Moving average of the dictionary: the weight of the past."""
    fq_init: Literal["data", "kmeans", "normal"] = "data"
    """How the dictionary starts: rows of the first batch, k-means on it, or noise as in the release."""
    fq_warmup: NotNegative[float] = 0.2
    """straight_through only: share of the run over which the strength of quantization rises from 0; 1 or
    more is a number of steps."""
    fq_strength: PositiveShare = 1.0
    """straight_through only: strength after that; below 1 features go only part of the way to centroids."""
    fq_ema: Literal["smoothed", "debiased"] = "smoothed"
    """Moving averages: as in the PyTorch release, or debiased as in its TensorFlow part."""
    fq_revive: NotNegative[float] = 0.0
    """Restart codes whose moving count falls below this number of features; 0 never does."""
    fq_in_generator_loss: bool = True
    """Add the commitment of the fakes to the generator's loss, as released."""
    fq_update_in_generator_step: bool = False
    """Let the dictionary move in the generator's step too, as released."""
    fq_update_per: Literal["micro_batch", "update"] = "micro_batch"
    """With accumulate > 1: move the dictionary in every forward, as released, or once per update."""

    channels: Positive[int] = 32
    """Width. residual: first discriminator block; biggan: ch of the paper; stylegan2: the widest layer."""
    latent_size: Positive[int] = 64
    """Size of the noise z."""
    initial: Literal["orthogonal", "normal"] = "orthogonal"
    """biggan: weights start orthogonal, or from N(0, 0.02^2)."""
    attention: str | int = 0
    """biggan: sizes in pixels of the maps with self-attention, as in 64 or 32_64; 0 for none."""
    shared_size: NotNegative[int] = 0
    """biggan: size of a class embedding that all norms share; 0 gives each norm its own."""
    hierarchical: bool = False
    """biggan: every generator block sees its own part of z."""
    singular_values: Positive[int] = 1
    """Spectral norm: how many singular values of each weight are estimated; only the largest counts."""
    power_iterations: Positive[int] = 1
    """Spectral norm: power iterations per training forward."""
    style_mixing: Share = 0.9
    """stylegan2: probability that the styles of a batch come from two noises."""
    batch_size: int = 64
    """Real images per forward of the discriminator and process, and as many fakes."""
    accumulate: Positive[int] = 1
    """Forwards per update: batch_size times this is the batch."""
    d_steps: Positive[int] = 1
    """Discriminator updates per generator update."""
    g_lr: Rate = 4e-4
    """Adam learning rate of the generator."""
    d_lr: Rate = 4e-4
    """Adam learning rate of the discriminator."""
    betas: tuple[Fraction, Fraction] = (0.0, 0.999)
    """Adam betas of both."""
    adam_eps: Rate = 1e-8
    """Adam epsilon of both."""
    r1_weight: NotNegative[float] = 0.0
    """Penalty on the squared gradient of D at real images (R1's gamma); 0 for none."""
    r1_every: Positive[int] = 16
    """Steps from one R1 penalty to the next, and the factor of its weight."""
    path_weight: NotNegative[float] = 0.0
    """stylegan2: penalty on uneven path lengths of the generator; 0 for none."""
    path_every: Positive[int] = 4
    """Steps from one path-length penalty to the next, and the factor of its weight."""
    ema_decay: Fraction = 0.99
    """Moving average of the generator's weights, with a ramp; the average is sampled and evaluated."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes the accelerator if there is one."""

    log_every: Positive[int] = 20
    """Steps between rows of metrics.csv."""
    checkpoint_every: NotNegative[int] = 200
    """Steps between checkpoints."""
    keep_checkpoints: Positive[int] = 2
    """Newest checkpoints that are kept, beside the best."""
    evaluate_every: NotNegative[int] = 200
    """Steps between evaluations; 0 evaluates only the last step."""
    eval_samples: Annotated[int, at_least(2)] = 2000
    """Generated images per evaluation."""

    def __post_init__(self) -> None:
        """Check ranges, so that a wrong value is refused before anything is built."""
        check_bounds(self)
        fit = image_fit(self.crop, self.resize)
        if fit != "auto" and not self.image_size:
            raise ConfigError(f"{fit} needs the size of the result: give --image-size N")
        if self.batch_size < 2:
            raise ConfigError(
                f"batch_size is {self.batch_size}; expected at least 2 (the generator has batch norm)"
            )
        if not all(size.isdecimal() for size in str(self.attention).split("_")):
            raise ConfigError(f"attention is {self.attention!r}; expected 0, or sizes like 64 or 32_64")
        if len(set(self.fq_layers)) != len(self.fq_layers):
            raise ConfigError(f"fq_layers are {self.fq_layers}; expected distinct block numbers")
        if self.path_weight and self.family != "stylegan2":
            raise ConfigError("path_weight needs a generator with styles: give --family stylegan2")
        if self.image_size and (self.image_size < 8 or self.image_size & (self.image_size - 1)):
            raise ConfigError(f"image_size is {self.image_size}; expected 0 or 8, 16, 32, 64, ...")

    @property
    def attention_sizes(self) -> tuple[int, ...]:
        """Sizes of the maps with self-attention, rising."""
        return tuple(sorted({int(size) for size in str(self.attention).split("_")} - {0}))

    @property
    def warmup_steps(self) -> int:
        """Steps over which the strength of quantization rises."""
        return in_steps(self.fq_warmup, self.steps)

    def reading(self) -> dict[str, Any]:
        """Return how the images are read: the keywords of `load_dataset`."""
        return {
            "size": self.image_size,
            "conditional": self.conditional,
            "fit": image_fit(self.crop, self.resize),
            "skip_damaged": self.skip_damaged,
            "nested": self.nested,
        }


# As released: the discriminator's features pass unchanged and pay the commitment loss, the dictionaries start
# as noise and move in the generator's step too. The release has no warm-up: straight_through has the digits'
# 140 steps. Sources: the launch scripts of FQ-GAN's BigGAN part and the options of its StyleGAN2 part;
# docs/fqgan.md has the table.
_RELEASED = FQGANConfig(
    data="",
    fq="regularize",
    fq_layers=(0, 1, 2, 3),
    num_codes=1024,
    fq_init="normal",
    fq_update_in_generator_step=True,
    channels=64,
    ema_decay=0.9999,
    log_every=100,
    checkpoint_every=1000,
    evaluate_every=5000,
    eval_samples=50_000,
)
_CIFAR = replace(
    _RELEASED,
    family="biggan",
    fq_warmup=140 / 100_000,
    image_size=32,
    latent_size=128,
    initial="normal",
    batch_size=64,
    d_steps=4,
    g_lr=2e-4,
    d_lr=2e-4,
    steps=100_000,
)
_IMAGENET = replace(
    _RELEASED,
    family="biggan",
    latent_size=120,
    shared_size=128,
    hierarchical=True,
    accumulate=4,
    g_lr=1e-4,
    d_lr=4e-4,
    adam_eps=1e-6,
)
_STYLEGAN2 = replace(
    _RELEASED,
    family="stylegan2",
    image_size=1024,
    conditional=False,
    flip=True,
    fq_layers=(-3, -2),
    fq_ema="debiased",
    channels=512,
    latent_size=512,
    batch_size=32,
    g_lr=2e-3,
    d_lr=2e-3,
    betas=(0.0, 0.99),
    r1_weight=100.0,
    path_weight=2.0,
    steps=780_000,
    fq_warmup=140 / 780_000,
)
# What a CPU trains in minutes: the same structure and quantization, narrow, on the digits.
_TINY = {
    "data": "digits",
    "num_codes": 64,
    "fq_warmup": 0.7,
    "ema_decay": 0.99,
    "steps": 200,
    "log_every": 20,
    "checkpoint_every": 100,
    "evaluate_every": 0,
    "eval_samples": 1000,
}
_FULL: dict[str, FQGANConfig] = {
    "biggan-cifar10": replace(_CIFAR, commitment=1.0, decay=0.8),
    "biggan-cifar100": replace(_CIFAR, commitment=10.0, decay=0.9, num_codes=64),
    "biggan-imagenet64": replace(
        _IMAGENET,
        image_size=64,
        attention=32,
        fq_layers=(2,),
        commitment=0.5,
        decay=0.7,
        batch_size=128,
        steps=250_000,
        fq_warmup=140 / 250_000,
    ),
    "biggan-imagenet128": replace(
        _IMAGENET,
        image_size=128,
        attention=64,
        commitment=15.0,
        decay=0.8,
        batch_size=256,
        steps=125_000,
        fq_warmup=140 / 125_000,
    ),
    "stylegan2-ffhq": replace(_STYLEGAN2, num_codes=128, commitment=0.25, decay=0.8),
}
_NARROW: dict[str, dict[str, Any]] = {
    "biggan-cifar10": {"channels": 8, "latent_size": 64, "batch_size": 32, "d_steps": 2},
    "biggan-cifar100": {"channels": 8, "latent_size": 64, "batch_size": 32, "d_steps": 2},
    "biggan-imagenet64": {"channels": 4, "latent_size": 60, "shared_size": 32, "batch_size": 8},
    "biggan-imagenet128": {"channels": 4, "latent_size": 60, "shared_size": 32, "batch_size": 4},
    "stylegan2-ffhq": {"image_size": 32, "channels": 32, "latent_size": 64, "batch_size": 16, "flip": False},
}
# The digits' network, for other images too, at a size that a CPU trains in minutes.
PRESETS: dict[str, FQGANConfig] = {
    "digits": FQGANConfig(),
    "mnist": FQGANConfig(preset="mnist", data="", image_size=16, steps=1000),
    "cifar10-small": FQGANConfig(
        preset="cifar10-small", data="", image_size=32, flip=True, channels=16, steps=2000
    ),
}
for _name, _full in _FULL.items():
    PRESETS[_name] = replace(_full, preset=_name)
    PRESETS[f"{_name}-tiny"] = replace(_full, **{"preset": f"{_name}-tiny", **_TINY, **_NARROW[_name]})


def preset(name: str) -> FQGANConfig:
    """Return a preset by its name, as `find_preset`."""
    return find_preset(PRESETS, name)
