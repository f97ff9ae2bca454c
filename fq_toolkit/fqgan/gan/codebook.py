"""Pictures of what the codes of a dictionary stand for: patches that share a code, and a map of features."""

import io
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fq_toolkit.fqgan.gan.runs import TrainedRun
from fq_toolkit.fqgan.gan.sampling import save_grid
from fq_toolkit.layers import FeatureQuantizer
from fq_toolkit.training.atomic import write_atomic
from fq_toolkit.training.errors import ConfigError, require
from fq_toolkit.training.seeding import isolated_rng

_BATCH = 100  # images in a forward


class CodedFeatures(NamedTuple):
    """Features that come into a quantizing layer, and their codes.

    features: (n, C, h, w), float32 on the CPU.
    codes: int64 (n, h, w).
    """

    features: Tensor
    codes: Tensor


class SharedCode(NamedTuple):
    """A code that real and generated features share, and how many of each take it."""

    code: int
    real: int
    fake: int


@torch.no_grad()
def code_features(
    discriminator: nn.Module, layer: FeatureQuantizer, images: Tensor, labels: Tensor
) -> CodedFeatures:
    """Return what comes into one of a discriminator's quantizing layers, and its codes. Runs in eval mode.

    Args:
        discriminator: ``D(images, labels)``.
        layer: one of its modules.
        images: (n, C, H, W) in [-1, 1].
        labels: int64 (n,).
    """
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    was_training = discriminator.training
    discriminator.eval()
    features, codes = [], []
    device = next(discriminator.parameters()).device
    try:
        for part, part_labels in zip(images.split(_BATCH), labels.split(_BATCH), strict=True):
            seen.clear()
            discriminator(part.to(device), part_labels.to(device))
            # On the CPU at once: features of all images are larger than the images.
            features.append(seen[0].float().cpu())
            codes.append(layer.quantize(seen[0]).indices.cpu())
    finally:
        handle.remove()
        discriminator.train(was_training)
    return CodedFeatures(torch.cat(features), torch.cat(codes))


def shared_codes(real: Tensor, fake: Tensor, *, num_codes: int, count: int) -> list[SharedCode]:
    """Return the codes that most features of both kinds take, by the smaller of the two numbers.

    Args:
        real: codes of real features, any shape.
        fake: codes of generated features.
        num_codes: K.
        count: how many codes to return at most.
    """
    of_real, of_fake = (torch.bincount(codes.flatten(), minlength=num_codes) for codes in (real, fake))
    meeting = torch.minimum(
        of_real, of_fake
    )  # a code with many of one kind and few of the other shows little
    order = torch.argsort(meeting, descending=True, stable=True)[:count].tolist()
    return [SharedCode(c, int(of_real[c]), int(of_fake[c])) for c in order if meeting[c] > 0]


def typical_patches(
    images: Tensor, coded: CodedFeatures, code: int, centroid: Tensor, *, count: int
) -> Tensor:
    """Cut out what lies under the features that take a code, the nearest to its centroid first.

    A patch is three cells of the feature map wide, and at least 8 pixels: what the feature sees best, not its
    whole receptive field. Each image gives at most one patch; missing ones are white.

    Args:
        images: (n, C, H, W) in [-1, 1].
        coded: of these images.
        code: which.
        centroid: its entry in the dictionary, (C,).
        count: patches.

    Returns:
        (count, C, side, side).
    """
    _, height, width = coded.codes.shape
    cell = images.shape[2] // height
    side = min(images.shape[2], max(8, 3 * cell))
    distances = (coded.features - centroid.cpu()[:, None, None]).square().sum(1)
    distances = distances.where(coded.codes == code, torch.inf).flatten(1)  # other codes are never nearest
    nearest, places = distances.min(1)
    patches = []
    for i in nearest.argsort(stable=True)[:count].tolist():
        if nearest[i].isinf():
            break
        row, column = divmod(int(places[i]), width)
        # The middle of the patch on that of the cell, as far as the border allows.
        top, left = (
            min(max(0, place * cell + cell // 2 - side // 2), images.shape[2] - side)
            for place in (row, column)
        )
        patches.append(images[i, :, top : top + side, left : left + side])
    blank = torch.ones(images.shape[1], side, side)
    return torch.stack(patches + [blank] * (count - len(patches)))


def plot_meeting(
    real: CodedFeatures, fake: CodedFeatures, codes: list[SharedCode], out: Path, *, per_code: int, seed: int
) -> None:
    """Draw a t-SNE map of real (o) and generated (x) features of some codes, a colour a code.

    Args:
        real: features of real images.
        fake: features of generated ones.
        codes: which codes.
        out: the PNG.
        per_code: features of each kind and code at most, drawn at random.
        seed: of that, and of t-SNE.

    Raises:
        MissingExtraError: without scikit-learn or matplotlib.
        RunError: when the file cannot be written.
    """
    manifold = require("sklearn.manifold", purpose="the map of features")
    figures = require("matplotlib.figure", purpose="the map of features")
    colormaps = require("matplotlib", purpose="the map of features").colormaps
    require("matplotlib.backends.backend_agg", purpose="the map of features")

    draws = torch.Generator().manual_seed(seed)
    groups: list[tuple[int, bool, Tensor]] = []
    for place, shared in enumerate(codes):
        for is_real, coded in ((True, real), (False, fake)):
            rows = coded.features.movedim(1, -1)[coded.codes == shared.code]
            groups.append((place, is_real, rows[torch.randperm(len(rows), generator=draws)[:per_code]]))
    points = torch.cat([rows for _, _, rows in groups])
    perplexity = min(
        30.0, max(1.0, (len(points) - 1) / 4)
    )  # scikit-learn wants it below the number of points
    flat = manifold.TSNE(init="pca", perplexity=perplexity, random_state=seed % 2**32).fit_transform(
        points.numpy()
    )

    figure = figures.Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.add_subplot()
    colors = colormaps["tab20"]
    start = 0
    for place, is_real, rows in groups:
        x, y = flat[start : start + len(rows)].T
        start += len(rows)
        label = f"code {codes[place].code}" if is_real else None
        axes.scatter(
            x, y, s=14, marker="o" if is_real else "x", color=colors(place % 20), label=label, lw=0.8
        )
    axes.set_title("t-SNE of discriminator features: real (o) and generated (x)", fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomic(out, buffer.getvalue())


def dictionaries(run: TrainedRun) -> dict[str, FeatureQuantizer]:
    """Return block number -> layer of a run's discriminator; empty without feature quantization."""
    return dict(run.discriminator.quantizers.items())  # type: ignore[union-attr, operator]


class CodebookPictures(NamedTuple):
    """The files of one layer, and the codes that they show."""

    patches: Path
    meeting: Path
    codes: list[SharedCode]


def codebook_pictures(
    run: TrainedRun, *, block: int, images: int, codes: int, patches: int, seed: int, folder: Path
) -> CodebookPictures:
    """Write two pictures of one layer's dictionary: patches that share a code, and the map of features.

    Args:
        run: a run with feature quantization.
        block: the discriminator's block whose output is quantized.
        images: real images looked at, and as many generated ones of the same classes.
        codes: codes shown: those in which most real and generated features meet.
        patches: patches of each kind and code.
        seed: of the choice of images and of the noise.
        folder: where ``codebook-blockN.png`` and ``codebook-blockN-tsne.png`` go.

    Returns:
        The files and the codes.

    Raises:
        ConfigError: when there is no such layer, or the two kinds of features share no code.
        RunError: when a file cannot be written.

    Source: arXiv 2004.02088, figure 5b.
    """
    layers = dictionaries(run)
    if str(block) not in layers:
        there = ", ".join(layers) or "none: it was trained with --fq none"
        raise ConfigError(f"block {block} has no dictionary; those with one: {there}")
    layer, sampler = layers[str(block)], run.sampler()
    with isolated_rng(seed):
        chosen = torch.randperm(len(run.data.images))[:images]
        labels = run.data.labels[chosen]
        pictures = run.data.images[chosen].cpu()
        # Of the same classes: else the two kinds would differ by what they show.
        made = torch.cat([sampler(part).cpu() for part in labels.split(_BATCH)])
    real = code_features(run.discriminator, layer, pictures, labels)
    fake = code_features(run.discriminator, layer, made, labels)
    shown = shared_codes(real.codes, fake.codes, num_codes=layer.num_codes, count=codes)
    if not shown:
        raise ConfigError(f"no code of block {block} is shared by real and generated features")
    rows = [
        typical_patches(source, coded, shared.code, layer.codebook[shared.code], count=patches)
        for shared in shown
        for source, coded in ((pictures, real), (made, fake))
    ]
    grid, plot = folder / f"codebook-block{block}.png", folder / f"codebook-block{block}-tsne.png"
    titles = ["real"] * patches + ["fake"] * patches
    save_grid(torch.cat(rows), grid, columns=2 * patches, titles=titles)
    plot_meeting(real, fake, shown, plot, per_code=40, seed=seed)
    return CodebookPictures(grid, plot, shown)
