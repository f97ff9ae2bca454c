"""How good a class-conditional generator is: Frechet distance with its floor, and class accuracy."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fq_toolkit.fqgan.datasets import ImageDataset
from fq_toolkit.fqgan.extractors import Extractor
from fq_toolkit.fqgan.frechet import StreamingMoments, frechet_distance
from fq_toolkit.fqgan.sampling import Sampler
from fq_toolkit.training.seeding import isolated_rng, rank_seed

# Of what must not depend on the run: everybody evaluates with the same noise.
EVALUATION_SEED = 90210
BATCH = 250
FLOOR_SPLITS = 4


def moments_of(features: Tensor) -> StreamingMoments:
    """Return the moments of feature rows (n, dim)."""
    moments = StreamingMoments(features.shape[1])
    moments.update(features)
    return moments


class Evaluation(NamedTuple):
    """One measurement.

    fid: Frechet distance between all real images and the generated ones.
    floor: the same between two random halves of the real images, mean over several splits. A half is smaller
        than the sets behind ``fid``, so a very good generator can come out a little below its floor.
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
        with torch.no_grad():
            features = torch.cat([extractor(part.cpu()).features for part in data.images.split(BATCH)])
        self.real = moments_of(features)
        draws = torch.Generator().manual_seed(0)
        splits = [torch.randperm(len(features), generator=draws).chunk(2) for _ in range(FLOOR_SPLITS)]
        distances = [frechet_distance(*(moments_of(features[half]) for half in halves)) for halves in splits]
        self.floor = sum(distances) / FLOOR_SPLITS

    @torch.no_grad()
    def __call__(self, sampler: Sampler, *, samples: int) -> Evaluation:
        """Measure a generator on ``samples`` images, the classes in turn.

        The noise is the same every time and the random state of training is not touched. Every process
        draws and measures its share; the result is that of all and the same everywhere.
        """
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        labels = torch.arange(samples)[rank::world] % self.num_classes
        moments, hits = StreamingMoments(self.extractor.dim), 0
        with isolated_rng(rank_seed(EVALUATION_SEED, rank)):
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
