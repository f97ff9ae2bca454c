"""Sizes of a `PrevalentModel`."""

from dataclasses import dataclass

from fq_toolkit.training.errors import ConfigError


@dataclass(frozen=True)
class PrevalentConfig:
    """Sizes of a `PrevalentModel`; the defaults are the released ones. Goes to ``config.json`` and back.

    Raises:
        ConfigError: for sizes that do not fit.

    Example:
        >>> PrevalentConfig.tiny(vocab_size=80, vision_size=192).hidden_size
        64

    Source: "Towards Learning a Generic Agent for Vision-and-Language Navigation via Pre-training",
    arXiv 2002.10638, section 4.1.
    """

    vocab_size: int = 30522
    """Word pieces; id 0 is padding."""
    hidden_size: int = 768
    """Width H of both streams."""
    num_heads: int = 12
    """Attention heads."""
    text_layers: int = 9
    """Layers that see the text alone."""
    cross_layers: int = 4
    """Layers that join both streams."""
    intermediate_size: int = 3072
    """Width inside the feed-forward blocks."""
    vision_size: int = 2176
    """Width F of a view: 2048 of the image and 128 of its direction."""
    max_positions: int = 512
    """Longest text."""
    type_vocab_size: int = 2
    """Rows of the token type table; only row 0 is used."""
    dropout: float = 0.1
    """After embeddings and blocks."""
    attention_dropout: float = 0.1
    """On attention weights."""
    layer_norm_eps: float = 1e-12
    """Of every LayerNorm."""
    init_std: float = 0.02
    """Standard deviation of the initial weights."""
    cross_init: float = 1.0
    """Factor on the initial weights of what cross-modal layers add; near 0 they begin as the identity."""

    def __post_init__(self) -> None:
        """Check ranges."""
        at_least_one = (
            "vocab_size", "hidden_size", "num_heads", "text_layers", "cross_layers", "intermediate_size",
            "vision_size", "max_positions", "type_vocab_size",
        )  # fmt: skip
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.hidden_size % self.num_heads:
            raise ConfigError(
                f"hidden_size is {self.hidden_size}; expected a multiple of num_heads ({self.num_heads})"
            )
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0 <= {name} < 1")
        for name in ("layer_norm_eps", "init_std"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected a positive number")
        if not self.cross_init >= 0:
            raise ConfigError(f"cross_init is {self.cross_init}; expected 0 or more")

    @classmethod
    def tiny(cls, *, vocab_size: int, vision_size: int) -> "PrevalentConfig":
        """Return sizes for `MiniWorld`: a model that trains in minutes on a CPU.

        Args:
            vocab_size: words.
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
