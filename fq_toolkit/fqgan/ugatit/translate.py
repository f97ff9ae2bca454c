"""Translated images: of a user's folder, and for the preview of a run."""

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from fq_toolkit.fqgan.data.image_files import Source, is_image, read_images
from fq_toolkit.fqgan.data.image_folders import loose_pictures
from fq_toolkit.fqgan.data.image_trees import Parts
from fq_toolkit.fqgan.data.unpaired import UnpairedDataset
from fq_toolkit.fqgan.gan.sampling import make_folder, save_image
from fq_toolkit.fqgan.ugatit.networks import Translators
from fq_toolkit.fqgan.ugatit.runs import TranslatorRun
from fq_toolkit.training.errors import ConfigError

PREVIEW_ROWS = 4
PREVIEW_TITLES = ("A", "looks at", "as B", "back", "B", "looks at", "as A", "back")
_BATCH = 16


@torch.no_grad()
def translate_folder(
    run: TranslatorRun,
    source: Path,
    out: Path,
    *,
    to: str,
    skip_damaged: bool = False,
    nested: bool = False,
) -> int:
    """Translate every picture of a folder or a zip archive (or one file) and write PNGs of the same names.

    Args:
        run: the run.
        source: folder, archive or file; the shorter side of a picture is scaled to the run's size, the middle
            cut out.
        out: folder of the results.
        to: ``"B"`` translates images of domain A, ``"A"`` those of B.
        skip_damaged: leave out pictures that cannot be read; the log counts and names them.
        nested: take all pictures below the folder, however deep; results lie in folders of the same names.

    Returns:
        How many pictures were written.

    Raises:
        ConfigError: when there are no pictures, files are broken, two would get one name, or ``out`` is
            where they lie.
        RunError: when a file cannot be written.
    """
    pictures = _pictures(source, nested=nested)
    names = [Path(*parts).with_suffix(".png") for parts, _ in pictures]
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise ConfigError(
            f"{source} holds several images that would become {repeated[0]}; rename one of them"
        )
    targets = {(out / name).resolve().parent for name in names}
    if targets & {picture.resolve().parent for _, picture in pictures if isinstance(picture, Path)}:
        raise ConfigError(f"the pictures lie in {out}: translations would replace them; give another --out")
    # What was checked so far needs no picture: nothing is half done when it is refused.
    generator = run.translators.a_to_b if to == "B" else run.translators.b_to_a
    channels = int(generator.down[1].in_channels)  # type: ignore[arg-type]
    read = read_images(
        [picture for _, picture in pictures],
        size=run.config.image_size,
        channels=channels,
        skip_damaged=skip_damaged,
    )
    places = iter([out / names[i] for i in read.kept])
    for part in read.images.split(_BATCH):
        for image in generator(part.to(run.device)).images.float().cpu():
            place = next(places)
            make_folder(place.parent)
            save_image(image, place)
    return len(read.kept)


def _pictures(source: Path, *, nested: bool) -> list[tuple[Parts, Source]]:
    """Return what is to be translated: the parts of each name, relative to the source, and the file."""
    if not source.exists():
        raise ConfigError(
            f"{source} does not exist; expected a picture, a folder or a zip archive of pictures"
        )
    if source.is_dir() or source.suffix.lower() == ".zip":
        pictures = loose_pictures(source, nested=nested)
    else:
        pictures = [((source.name,), source)] * is_image(source)
    if not pictures:
        raise ConfigError(f"{source} holds no images")
    return pictures


@torch.no_grad()
def preview_images(translators: Translators, data: UnpairedDataset, device: torch.device) -> Tensor:
    """Return rows of pictures under `PREVIEW_TITLES`, (rows * 8, C, H, W)."""
    rows = []
    for i in range(min(PREVIEW_ROWS, len(data.test_a), len(data.test_b))):
        row = []
        for images, there, back in (
            (data.test_a, translators.a_to_b, translators.b_to_a),
            (data.test_b, translators.b_to_a, translators.a_to_b),
        ):
            real = images[i : i + 1].to(device)
            made = there(real)
            low, high = made.heatmap.amin(), made.heatmap.amax()
            heat = (made.heatmap - low) / (high - low).clamp(min=1e-12) * 2 - 1
            heat = functional.interpolate(heat.float(), size=real.shape[2:], mode="bilinear")
            row += [real, heat.expand_as(real), made.images, back(made.images).images]
        rows.append(torch.cat(row))
    return torch.cat(rows).float().cpu()
