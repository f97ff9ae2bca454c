"""Images from a generator, and pictures of many of them."""

import copy
import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fq_toolkit.fqgan.data.pixels import to_pixels
from fq_toolkit.training.atomic import explain, write_atomic
from fq_toolkit.training.averaging import recalibrate_batchnorm
from fq_toolkit.training.errors import RunError, require
from fq_toolkit.training.seeding import isolated_rng

# The noise of evaluations and previews is the same for all runs.
EVALUATION_SEED = 90210
CALIBRATION_BATCHES, CALIBRATION_SIZE = 8, 250
# Images that are generated at a time.
FORWARD = 250


class Sampler:
    """Images on request from a generator in eval mode. Uses the global random state.

    Args:
        generator: ``G(z, labels) -> images``, with ``latent_size`` and ``num_classes``.
        truncation: for less varied and cleaner images; None draws plain noise. Styles, if the generator has
            any, are pulled towards their mean (1 changes nothing, 0 gives one image). Otherwise noise beyond
            this many standard deviations is drawn again, the truncation trick of BigGAN, arXiv 1809.11096,
            section 3.1.

    Raises:
        ValueError: when truncation is not positive.
    """

    def __init__(self, generator: nn.Module, *, truncation: float | None = None) -> None:
        if truncation is not None and not truncation > 0:
            raise ValueError(f"truncation is {truncation}; expected a positive number")
        self.generator, self.truncation = generator, truncation
        self.latent_size: int = generator.latent_size  # type: ignore[assignment]
        self.num_classes: int = generator.num_classes  # type: ignore[assignment]
        self.device = next(generator.parameters()).device
        self._has_styles = hasattr(generator, "truncated")

    def noise(self, count: int) -> Tensor:
        """Return noise (count, latent_size) on the generator's device."""
        z = torch.empty(count, self.latent_size, device=self.device)
        # Styles are truncated instead of noise, after the mapping.
        if self.truncation is None or self._has_styles:
            return z.normal_()
        return nn.init.trunc_normal_(z, a=-self.truncation, b=self.truncation)

    @torch.no_grad()
    def images(self, z: Tensor, labels: Tensor) -> Tensor:
        """Return the float32 images in [-1, 1] of noise (n, latent_size) and labels (n,), (n, C, H, W)."""
        parts = zip(z.split(FORWARD), labels.to(self.device).split(FORWARD), strict=True)
        return torch.cat([self._forward(*part) for part in parts])

    def _forward(self, z: Tensor, labels: Tensor) -> Tensor:
        if self._has_styles and self.truncation is not None:
            made = self.generator.truncated(z, labels, self.truncation)  # type: ignore[operator]
        else:
            made = self.generator(z, labels)
        return made.float().clamp(-1, 1)  # StyleGAN2 has no tanh at its end

    def __call__(self, labels: Tensor) -> Tensor:
        """Return one float32 image in [-1, 1] for each label, (n, C, H, W)."""
        return self.images(self.noise(len(labels)), labels)

    def recalibrate(self) -> None:
        """Recompute the generator's batch-norm statistics from fresh noise, the classes in turn.

        An average of weights was never run, so the statistics it copied belong to other weights.
        """
        places = torch.arange(CALIBRATION_BATCHES * CALIBRATION_SIZE, device=self.device)
        parts = iter((places % self.num_classes).split(CALIBRATION_SIZE))
        recalibrate_batchnorm(
            self.generator,
            lambda: self.generator(self.noise(CALIBRATION_SIZE), next(parts)),
            batches=CALIBRATION_BATCHES,
        )


def calibrated_sampler(generator: nn.Module, *, truncation: float | None = None) -> Sampler:
    """Return a sampler of a copy of the generator with fresh, reproducible batch-norm statistics."""
    sampler = Sampler(copy.deepcopy(generator), truncation=truncation)
    with isolated_rng(EVALUATION_SEED):
        sampler.recalibrate()
    return sampler


def class_columns(sampler: Sampler, classes: "list[int] | range", rows: int) -> Tensor:
    """Draw ``rows`` images of each class -> (rows * len(classes), C, H, W), a column for each class."""
    return sampler(torch.tensor(list(classes)).repeat(rows))


def slerp(a: Tensor, b: Tensor, shares: Tensor) -> Tensor:
    """Go from rows of a to rows of b along great circles.

    ``sin((1 - t) w) / sin(w) a + sin(t w) / sin(w) b`` with w the angle between them; a straight line where
    the rows point the same way. Normal noise of many dimensions has nearly constant length: a straight line
    would leave that shell, and with it what the generator was trained on.

    Args:
        a: (n, dim).
        b: (n, dim).
        shares: t, (steps,) in [0, 1].

    Returns:
        (n, steps, dim).
    """
    cosine = nn.functional.cosine_similarity(a, b, dim=1).clamp(-1, 1)
    angle, t = cosine.acos()[:, None], shares.to(a)[None]
    sine = angle.sin()
    straight = sine < 1e-4  # the quotients lose their digits there, and the two ways agree
    safe = torch.where(straight, torch.ones_like(sine), sine)
    of_a = torch.where(straight, 1 - t, ((1 - t) * angle).sin() / safe)
    of_b = torch.where(straight, t, (t * angle).sin() / safe)
    return of_a[..., None] * a[:, None] + of_b[..., None] * b[:, None]


def interpolation_strips(sampler: Sampler, labels: Tensor, *, steps: int) -> Tensor:
    """Draw strips from one noise to another, one for each label -> (n * steps, C, H, W)."""
    ways = slerp(
        sampler.noise(len(labels)),
        sampler.noise(len(labels)),
        torch.linspace(0, 1, steps, device=sampler.device),
    )
    return torch.cat(
        [sampler.images(way, label.expand(steps)) for way, label in zip(ways, labels, strict=True)]
    )


def to_bytes(images: Tensor) -> np.ndarray:
    """Turn images (n, C, H, W) in [-1, 1] into uint8 (n, H, W, C)."""
    return to_pixels(images).permute(0, 2, 3, 1).cpu().numpy()


def make_folder(folder: Path) -> None:
    """Make a folder for pictures, and its parents.

    Raises:
        RunError: when it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write into {folder}: {explain(error)}") from error


def save_image(image: Tensor, path: Path) -> None:
    """Write one image (1 or 3, H, W) in [-1, 1] as a PNG of its own size, atomically.

    Raises:
        MissingExtraError: without pillow.
        RunError: when the file cannot be written.
    """
    pixels = to_bytes(image[None])[0]
    pictures = require("PIL.Image", purpose="writing images")
    buffer = io.BytesIO()
    pictures.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(buffer, format="PNG")
    write_atomic(path, buffer.getvalue())


def save_grid(images: Tensor, path: Path, *, columns: int, titles: "list[str] | None" = None) -> None:
    """Write images as one PNG, atomically; small ones are enlarged to about 64 pixels without smoothing.

    Args:
        images: (n, C, H, W) in [-1, 1], C 1 or 3, row by row.
        path: the PNG file.
        columns: images per row.
        titles: a short text above each column.

    Raises:
        MissingExtraError: without pillow.
        ValueError: for another number of channels or titles.
        RunError: when the file cannot be written.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images have shape {tuple(images.shape)}; expected (n, 1 or 3, H, W)")
    if titles is not None and len(titles) != columns:
        raise ValueError(f"{len(titles)} titles for {columns} columns")
    pictures = require("PIL.Image", purpose="writing images")
    drawing = require("PIL.ImageDraw", purpose="writing images")

    pixels = to_bytes(images)
    count, height, width, channels = pixels.shape
    zoom = max(1, 64 // height)  # whole pixels, so that nothing is smoothed
    gap, head = 4, 16 if titles else 0
    rows = -(-count // columns)
    cell_h, cell_w = height * zoom + gap, width * zoom + gap
    canvas = np.full((head + rows * cell_h + gap, columns * cell_w + gap, channels), 255, dtype=np.uint8)
    for i, image in enumerate(pixels.repeat(zoom, axis=1).repeat(zoom, axis=2)):
        top, left = head + gap + i // columns * cell_h, gap + i % columns * cell_w
        canvas[top : top + height * zoom, left : left + width * zoom] = image
    picture = pictures.fromarray(canvas.squeeze(2) if channels == 1 else canvas)
    if titles:
        draw = drawing.Draw(picture)
        for i, title in enumerate(titles):
            # Letters of pillow's own font are about 6 pixels wide.
            draw.text((gap + i * cell_w + cell_w // 2 - 3 * len(title), 3), title, fill=0)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    write_atomic(path, buffer.getvalue())
