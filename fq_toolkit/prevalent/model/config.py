"""Sizes of a `PrevalentModel`."""

from dataclasses import dataclass

from fq_toolkit.training.bounds import Fraction, NotNegative, Positive, check_bounds
from fq_toolkit.training.errors import ConfigError


@dataclass(frozen=True)
class PrevalentConfig:
    """Sizes of a `PrevalentModel`; the defaults are the released ones. Stored in ``config.json``.

    Raises:
        ConfigError: for sizes that do not fit.

    Example:
        >>> PrevalentConfig.tiny(vocab_size=80, vision_size=192).hidden_size
        64

    Source: "Towards Learning a Generic Agent for Vision-and-Language Navigation via Pre-training",
    arXiv 2002.10638, section 4.2 (encoder architecture).
    """

    vocab_size: Positive[int] = 30522
    """Word pieces; id 0 is padding."""
    hidden_size: Positive[int] = 768
    """Width H of both streams."""
    num_heads: Positive[int] = 12
    """Attention heads."""
    text_layers: Positive[int] = 9
    """Layers that see only the text."""
    cross_layers: Positive[int] = 4
    """Layers that join both streams."""
    intermediate_size: Positive[int] = 3072
    """Width inside the feed-forward blocks."""
    vision_size: Positive[int] = 2176
    """Width F of a view: 2048 of the image and 128 of its direction."""
    max_positions: Positive[int] = 512
    """Longest text."""
    type_vocab_size: Positive[int] = 2
    """Rows of the token type table; only row 0 is used."""
    dropout: Fraction = 0.1
    """After embeddings and blocks."""
    attention_dropout: Fraction = 0.1
    """On attention weights."""
    layer_norm_eps: Positive[float] = 1e-12
    """Of every LayerNorm."""
    init_std: Positive[float] = 0.02
    """Standard deviation of the initial weights."""
    cross_init: NotNegative[float] = 1.0
    """Factor on the initial weights of the last map in each cross-modal block; near 0 they begin as the
    identity."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_bounds(self)
        if self.hidden_size % self.num_heads:
            raise ConfigError(
                f"hidden_size is {self.hidden_size}; expected a multiple of num_heads ({self.num_heads})"
            )

    @classmethod
    def tiny(cls, *, vocab_size: int, vision_size: int) -> "PrevalentConfig":
        """Return sizes for `MiniWorld`: a model that trains in minutes on a CPU.

        Args:
            vocab_size: number of words.
            vision_size: width of a view with its angles.
        """
        return cls(
            vocab_size=vocab_size,
            vision_size=vision_size,
            hidden_size=64,
            num_heads=4,
            text_layers=2,
            cross_layers=2,
            intermediate_size=256,
            max_positions=128,
            dropout=0.0,
            attention_dropout=0.0,
            init_std=0.1,
            cross_init=0.05,
        )
