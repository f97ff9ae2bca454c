"""How good a class-conditional generator is: Frechet distance with its floor, and class accuracy."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fq_toolkit.fqgan.datasets import ImageDataset
from fq_toolkit.fqgan.extractors import Extractor
from fq_toolkit.fqgan.frechet import StreamingMoments, frechet_distance
from fq_toolkit.fqgan.sampling import Sampler

BATCH = 250


class Evaluation(NamedTuple):
    """One measurement.

    fid: Frechet distance between all real images and the generated ones.
    floor: the same between two halves of the real images: what a perfect generator cannot be expected to
        beat.
    accuracy: share of generated images that the extractor puts into the class they were asked for.
    samples: generated images.
    extractor: name of the feature extractor.
    holdout_accuracy: its accuracy on real images that it was not trained on.
    """

    fid: float
    floor: float
    accuracy: float
    samples: int
    extractor: str
    holdout_accuracy: float

    def __str__(self) -> str:
        return (
            f"fid[{self.extractor}] {self.fid:.2f} (n={self.samples}, real-vs-real floor {self.floor:.2f})  "
            f"class accuracy {self.accuracy:.3f} (real, held out: {self.holdout_accuracy:.3f})"
        )


class Evaluator:
    """Measures generators against one dataset; the real side is computed once.

    Args:
        data: real images and labels.
        extractor: the ruler.
        accelerator: splits the work between processes.
    """

    def __init__(self, data: ImageDataset, extractor: Extractor, accelerator: Any) -> None:
        self.extractor, self.accelerator, self.num_classes = extractor, accelerator, data.num_classes
        order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(0))
        halves = [self._moments(data.images[part]) for part in order.chunk(2)]
        self.floor = frechet_distance(*halves)
        self.real = halves[0]
        self.real.merge(halves[1])

    @torch.no_grad()
    def _moments(self, images: Tensor) -> StreamingMoments:
        moments = StreamingMoments(self.extractor.dim)
        for part in images.split(BATCH):
            moments.update(self.extractor(part.cpu()).features)
        return moments

    @torch.no_grad()
    def __call__(self, sampler: Sampler, *, samples: int) -> Evaluation:
        """Measure a generator on ``samples`` images, the classes in turn.

        Every process draws and measures its share; the result is that of all and the same everywhere.
        """
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        labels = torch.arange(samples)[rank::world] % self.num_classes
        moments, hits = StreamingMoments(self.extractor.dim), 0
        for part in labels.split(BATCH):
            features, logits = self.extractor(sampler(part).cpu())
            moments.update(features)
            hits += int((logits.argmax(1) == part).sum())
        moments.merge_processes(self.accelerator)
        total = self.accelerator.reduce(
            torch.tensor([float(hits)], device=self.accelerator.device), reduction="sum"
        )
        return Evaluation(
            fid=frechet_distance(self.real, moments),
            floor=self.floor,
            accuracy=float(total) / samples,
            samples=samples,
            extractor=self.extractor.name,
            holdout_accuracy=self.extractor.holdout_accuracy,
        )
