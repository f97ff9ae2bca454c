"""Options of the U-GAT-IT trainer, and its presets."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from fq_toolkit.fqgan.gan.config import image_fit, in_steps
from fq_toolkit.training.bounds import Fraction, NotNegative, Positive, PositiveShare, Rate, check_bounds
from fq_toolkit.training.config import find_preset
from fq_toolkit.training.errors import ConfigError

TRAINER = "ugatit"


@dataclass(frozen=True)
class UGATITConfig:
    """Everything that decides a run, as ``config.json`` holds it. The defaults are the paper's."""

    preset: str = "u-gat-it"
    """Where the other options start."""
    data: str = "digits"
    """A folder or zip archive with trainA, trainB, testA and testB; or digits: digits and negatives."""
    image_size: int = 256
    """Pixels of a side; training images are loaded at 286/256 of it and cut at random."""
    crop: bool = False
    """Images that are not square: scale the shorter side and cut out the middle, without a warning."""
    resize: bool = False
    """Images that are not square: scale both sides, which squeezes them."""
    skip_damaged: bool = False
    """Leave out pictures that cannot be read, and count and name them, instead of refusing the folder."""
    nested: bool = False
    """Take all pictures below each of the four folders, however deep."""
    extractor: str = "auto"
    """What measures images: auto (random-cnn), or NAME:TORCHSCRIPT_FILE."""
    seed: NotNegative[int] = 0
    """Of weights, noise and data order."""
    steps: Positive[int] = 1_000_000
    """Updates of the generators."""

    fq: Literal["none", "regularize", "straight_through"] = "regularize"
    """Feature quantization: off; the loss of the released code; or the paper's quantized features."""
    fq_layers: tuple[int, ...] = (1, 2, 3)
    """Convolutions of the global discriminators whose output is quantized, from 0."""
    num_codes: tuple[int, ...] = (64, 128, 128)
    """Dictionary size K of each of these layers; every domain has dictionaries of its own."""
    commitment: NotNegative[float] = 2.0
    """Weight of the commitment loss."""
    decay: Fraction = 0.85
    """Moving average of the dictionary: the weight of the past."""
    fq_init: Literal["data", "kmeans", "normal"] = "data"
    """How the dictionary starts: rows of the first batch, k-means on it, or noise as in the release."""
    fq_warmup: NotNegative[float] = 0.01
    """straight_through only: share of the run over which the strength of quantization rises from 0; 1 or
    more is a number of steps."""
    fq_strength: PositiveShare = 1.0
    """straight_through only: strength after that; below 1 features go only part of the way to centroids."""
    fq_revive: NotNegative[float] = 0.0
    """Restart codes whose moving count falls below this number of features; 0 never does."""
    fq_in_generator_loss: bool = True
    """Add the commitment of the fakes to the generators' loss, as released."""
    fq_update_in_generator_step: bool = False
    """Let the dictionaries move in the generators' step too, as released."""
    fq_update_per: Literal["micro_batch", "update"] = "micro_batch"
    """With accumulate > 1: move the dictionaries in every forward, as released, or once per update."""

    light: bool = False
    """AdaLIN's parameters from averages over the image: 10.6 instead of 279 million weights."""
    width: Positive[int] = 64
    """Channels after the first convolution of every network."""
    blocks: Positive[int] = 4
    """Residual blocks before the generator's attention, and as many after it."""
    global_layers: int = 7
    """Convolutions of the global discriminators."""
    local_layers: int = 5
    """Convolutions of the local discriminators."""
    batch_size: Positive[int] = 1
    """Images of each domain per forward and process."""
    accumulate: Positive[int] = 1
    """Forwards per update: batch_size times this is the batch."""
    lr: Rate = 1e-4
    """Adam learning rate of all networks."""
    lr_decay_start: float = 0.5
    """Share of the run after which the learning rate falls linearly; 1 or more is a number of steps."""
    lr_decay_end: float = 1.0
    """Share of the run after which it is 0, 1 for its end; more than 1 is a number of steps."""
    betas: tuple[Fraction, Fraction] = (0.5, 0.999)
    """Adam betas of all networks."""
    weight_decay: NotNegative[float] = 1e-4
    """L2 penalty on all weights, as part of their gradient."""
    adversarial_weight: NotNegative[float] = 1.0
    """Weight of the adversarial losses."""
    cycle_weight: NotNegative[float] = 10.0
    """Weight of the way there and back."""
    identity_weight: NotNegative[float] = 10.0
    """Weight of leaving the target domain as it is."""
    cam_weight: NotNegative[float] = 1000.0
    """Weight of the generators' attention."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes the accelerator if there is one."""

    log_every: Positive[int] = 100
    """Steps between rows of metrics.csv."""
    checkpoint_every: NotNegative[int] = 10_000
    """Steps between checkpoints."""
    keep_checkpoints: Positive[int] = 2
    """Newest checkpoints that are kept, beside the best."""
    evaluate_every: NotNegative[int] = 50_000
    """Steps between evaluations; 0 evaluates only the last step."""

    def __post_init__(self) -> None:
        """Check ranges, so that a wrong value is refused before anything is built."""
        check_bounds(self)
        image_fit(self.crop, self.resize)
        start, end = self.decay_steps
        if not 0 <= start < end < math.inf:
            raise ConfigError(
                f"lr_decay_start is {self.lr_decay_start:g}, lr_decay_end {self.lr_decay_end:g}: steps "
                f"{start:g} and {end:g} of {self.steps}; expected 0 <= start < end"
            )
        if self.image_size < 8 or self.image_size & (self.image_size - 1):
            raise ConfigError(f"image_size is {self.image_size}; expected a power of two, 8 or more")
        for name in ("global_layers", "local_layers"):
            layers = getattr(self, name)
            if layers < 3 or self.image_size >> (layers - 2) < 3:
                raise ConfigError(
                    f"{name} is {layers}; expected at least 3, and few enough that {self.image_size} pixels, "
                    f"halved {max(0, layers - 2)} times, leave 4"
                )
        convolutions = self.global_layers - 1
        if len(set(self.fq_layers)) != len(self.fq_layers) or not all(
            0 <= layer < convolutions for layer in self.fq_layers
        ):
            raise ConfigError(
                f"fq_layers are {self.fq_layers}; "
                f"a global discriminator has convolutions 0 to {convolutions - 1}, each at most once"
            )
        if len(self.num_codes) != len(self.fq_layers) or any(codes < 1 for codes in self.num_codes):
            raise ConfigError(
                f"num_codes are {self.num_codes}; expected one size for each of {self.fq_layers}"
            )

    @property
    def warmup_steps(self) -> int:
        """Steps over which the strength of quantization rises."""
        return in_steps(self.fq_warmup, self.steps)

    @property
    def decay_steps(self) -> tuple[float, float]:
        """Steps from and to which the learning rate falls."""
        start, end = self.lr_decay_start, self.lr_decay_end
        # An end of 1 is the share: a rate that is 0 after one step trains nothing.
        return start * self.steps if start < 1 else start, end * self.steps if end <= 1 else end

    def reading(self) -> dict[str, Any]:
        """Return how the images are read: the keywords of `load_unpaired`."""
        return {
            "size": self.image_size,
            "fit": image_fit(self.crop, self.resize),
            "skip_damaged": self.skip_damaged,
            "nested": self.nested,
        }


_FULL = UGATITConfig()
PRESETS: dict[str, UGATITConfig] = {
    "u-gat-it": _FULL,
    "u-gat-it-light": replace(_FULL, preset="u-gat-it-light", light=True),
    "u-gat-it-tiny": replace(
        _FULL, preset="u-gat-it-tiny", image_size=16, steps=300, fq_layers=(0, 1), num_codes=(16, 16),
        fq_warmup=0.2, light=True, width=16, blocks=1, global_layers=4, local_layers=3, batch_size=8, lr=5e-4,
        log_every=10, checkpoint_every=100, evaluate_every=100,
    ),
}  # fmt: skip


def preset(name: str) -> UGATITConfig:
    """Return a preset by its name, as `find_preset`."""
    return find_preset(PRESETS, name)
