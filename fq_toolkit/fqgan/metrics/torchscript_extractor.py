"""A user's own feature extractor in a TorchScript file: Inception, CLIP, or any other."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fq_toolkit.fqgan.data.pixels import to_pixels
from fq_toolkit.fqgan.metrics.classifiers import Extracted
from fq_toolkit.training.errors import ConfigError


class TorchScriptExtractor:
    """Calls a TorchScript module with colour images of bytes.

    The module gets uint8 (n, 3, H, W) and returns features (n, dim), or these and class logits (n, classes).
    A module whose ``forward`` has an argument ``return_features``, as the Inception files that are in use
    have, is asked for features with it, and for class probabilities without.

    Args:
        name: how figures that it makes are called.
        path: the file.

    Attributes:
        sha256: of the file, first 12 digits; goes to ``evaluation.json``.

    Raises:
        ConfigError: when the file cannot be loaded or returns something else.
    """

    holdout_accuracy = None

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        try:
            self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
            self._module: Any = torch.jit.load(str(path), map_location="cpu").eval()
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ConfigError(f"{path} cannot be loaded as TorchScript: {reason}") from error
        schema = getattr(getattr(self._module, "forward", None), "schema", None)
        arguments = [argument.name for argument in schema.arguments] if schema is not None else []
        self._asks = "return_features" in arguments
        self.dim = 0  # not known yet, and not compared with: one forward tells it
        self.dim = int(self(torch.zeros(2, 3, 64, 64)).features.shape[1])

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Extracted:
        """Look at images (n, 1 or 3, H, W) in [-1, 1].

        Raises:
            ConfigError: when the module fails on them or returns something else than it should.
        """
        pixels = to_pixels(images)
        pixels = pixels.expand(-1, 3, -1, -1).contiguous() if pixels.shape[1] == 1 else pixels
        try:
            if self._asks:
                features = self._module(pixels, return_features=True)
                # Such modules return probabilities; the log of one that is 0 would not be finite.
                logits = self._module(pixels).clamp(min=1e-20).log()
            else:
                output = self._module(pixels)
                features, logits = output if isinstance(output, tuple) else (output, None)
        except Exception as error:  # whatever a foreign module raises
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            raise ConfigError(f"{self.path} fails on bytes {tuple(pixels.shape)}: {reason}") from error
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(images):
            raise ConfigError(
                f"{self.path} returned {shape} for {len(images)} images; expected features (n, dim)"
            )
        if self.dim and features.shape[1] != self.dim:
            raise ConfigError(
                f"{self.path} returned {features.shape[1]} features for {tuple(pixels.shape)} and {self.dim} "
                "for 64x64 pixels; expected as many for every size: pool over positions, or resize inside"
            )
        if logits is not None:
            classes = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
                raise ConfigError(
                    f"{self.path} returned class logits {classes} for {len(images)} images; "
                    "expected (n, classes)"
                )
        if not all(bool(values.isfinite().all()) for values in (features, logits) if values is not None):
            raise ConfigError(f"{self.path} returned values that are not finite for {len(images)} images")
        return Extracted(features.float(), logits)
