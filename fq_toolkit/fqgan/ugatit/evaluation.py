"""How good translations are: the distance of translated test images from real ones of the target domain."""

from typing import Any, NamedTuple

import torch

from fq_toolkit.fqgan.data.datasets import ImageDataset
from fq_toolkit.fqgan.data.pixels import Images
from fq_toolkit.fqgan.data.unpaired import UnpairedDataset
from fq_toolkit.fqgan.gan.evaluation import Evaluation, RealStatistics, Statistics, summarize
from fq_toolkit.fqgan.metrics.extractors import load_extractor
from fq_toolkit.fqgan.ugatit.networks import Translators, UGATITGenerator
from fq_toolkit.training.errors import ConfigError

DIRECTIONS = ("A to B", "B to A")
BATCH = 16


class TranslationEvaluation(NamedTuple):
    """Measurements of both directions; the kernel distance is the one that the paper reports."""

    a_to_b: Evaluation
    b_to_a: Evaluation

    def __str__(self) -> str:
        return "\n".join(
            f"{direction}: kid[{one.extractor}] {one.kid:.4g} (n={one.samples}, real-vs-real floor "
            f"{one.kid_floor:.2g})  fid[{one.extractor}] {one.fid:.2f} (floor {one.floor:.2f})"
            for direction, one in zip(DIRECTIONS, self, strict=True)
        )

    def columns(self) -> dict[str, float]:
        """Return the measurement as columns of ``metrics.csv``."""
        figures = [
            *((one.kid, one.kid_floor) for one in self),
            *((one.fid, one.floor) for one in self),
        ]
        flat = [figure for pair in figures for figure in pair]
        flat.append((self.a_to_b.kid + self.b_to_a.kid) / 2)
        return dict(zip(translation_columns(self.a_to_b.extractor), flat, strict=True))

    def record(self) -> dict[str, Any]:
        """Return direction -> figures, for ``evaluation.json``."""
        return {name: one._asdict() for name, one in zip(DIRECTIONS, self, strict=True)}


def translation_columns(extractor: str) -> list[str]:
    """Return the names of `TranslationEvaluation.columns`, in the same order."""
    names = [
        f"{figure}[{extractor}]/{curve}"
        for figure in ("kid", "fid")
        for direction in DIRECTIONS
        for curve in (direction, f"{direction} floor")
    ]
    return [*names, mean_distance(extractor)]


def mean_distance(extractor: str) -> str:
    """Return the column of the figure that chooses the best checkpoint: the mean KID of both directions."""
    return f"kid[{extractor}]/mean"


class TranslationEvaluator:
    """A metric of translators on the test images of both domains; the real side is computed once.

    Args:
        data: both domains, with four or more test images each.
        extractor: of the features, see `load_extractor`.

    Raises:
        ConfigError: for an extractor that is unknown or does not fit, or too few test images.
    """

    def __init__(self, data: UnpairedDataset, extractor: str) -> None:
        self.data = data
        domains = [
            _as_dataset(data, name, images) for name, images in (("A", data.test_a), ("B", data.test_b))
        ]
        self.extractor = load_extractor(extractor, domains[0])
        self.real_a, self.real_b = (RealStatistics(domain, self.extractor) for domain in domains)

    def __call__(self, translators: Translators, device: torch.device) -> TranslationEvaluation:
        """Translate all test images and compare them with the real ones of the other domain.

        Uses no random numbers. Every process does the whole of it.
        """
        return TranslationEvaluation(
            self._one(translators.a_to_b, self.data.test_a, self.real_b, device),
            self._one(translators.b_to_a, self.data.test_b, self.real_a, device),
        )

    @torch.no_grad()
    def _one(
        self, generator: UGATITGenerator, images: Images, real: RealStatistics, device: torch.device
    ) -> Evaluation:
        fake = Statistics(self.extractor.dim)
        for part in images.split(BATCH):
            fake.update(self.extractor(generator(part.to(device)).images.float().cpu()))
        return summarize(real, fake, self.extractor, samples=len(images), accuracy=None)


def _as_dataset(data: UnpairedDataset, domain: str, images: Images) -> ImageDataset:
    if len(images) < 4:
        raise ConfigError(
            f"{data.name}: domain {domain} has {len(images)} images to test on; expected 4 or more"
        )
    # A domain has no classes, so only an extractor that needs none fits.
    labels = torch.zeros(len(images), dtype=torch.long)
    return ImageDataset(f"{data.name} {domain}", images, labels, 1, "random-cnn")
