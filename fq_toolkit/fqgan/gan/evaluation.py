"""How good a generator is: distances, scores and coverage, each beside what real images reach."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fq_toolkit.fqgan.data.datasets import ImageDataset
from fq_toolkit.fqgan.gan.sampling import EVALUATION_SEED, Sampler
from fq_toolkit.fqgan.metrics.classifiers import Extracted
from fq_toolkit.fqgan.metrics.extractors import Extractor
from fq_toolkit.fqgan.metrics.feature_rows import FeatureRows
from fq_toolkit.fqgan.metrics.frechet import Gaussian, StreamingMoments, frechet_distance
from fq_toolkit.fqgan.metrics.inception_score import ClassScores, SplitScores
from fq_toolkit.fqgan.metrics.kid import KernelSet, kernel_distance
from fq_toolkit.fqgan.metrics.precision_recall import (
    DENSITY_NEIGHBOURS,
    NEIGHBOURS,
    Manifold,
    density_coverage,
    precision_recall,
)
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.seeding import isolated_rng, rank_seed

BATCH = 250
FLOOR_SPLITS = 4
# The kernel distance, precision and recall compare all pairs of rows, so they look at this many at most.
PAIRED_ROWS = 5_000


class Evaluation(NamedTuple):
    """One measurement.

    fid: Frechet distance between all real images and the generated ones.
    floor: the same between two random halves of the real images, mean over several splits. A half is smaller
        than the sets behind ``fid``, so a very good generator can come out a little below its floor.
    accuracy: share of generated images that the extractor puts into the class they were asked for; None
        where there is one class, or the extractor does not know the classes.
    samples: generated images.
    extractor: name of the feature extractor.
    holdout_accuracy: its accuracy on real images that it was not trained on; None as above.
    kid: kernel distance; unbiased, so it may be below 0.
    kid_floor: the same between two halves of the real images.
    precision: share of generated images within the manifold of the real ones.
    recall: share of real images within the manifold of the generated ones.
    real_precision: precision of one half of the real images against the other: what can be reached.
    density: of generated images in balls around real ones; about 1 for equal sets, see `density_coverage`.
    coverage: share of real images with a generated one in their ball.
    inception_score: of all generated images by the extractor's classes; None without classes.
    real_inception_score: of all real images.
    inception_score_mean: mean over ten parts of the generated images, which is what papers print.
    inception_score_deviation: standard deviation over these parts.
    real_images: real images compared with.
    stored: whether ``fid`` is to statistics from a file; the other figures are to the images at hand.
    """

    fid: float
    floor: float
    accuracy: float | None
    samples: int
    extractor: str
    holdout_accuracy: float | None
    kid: float
    kid_floor: float
    precision: float
    recall: float
    real_precision: float
    density: float
    coverage: float
    inception_score: float | None
    inception_score_mean: float | None
    inception_score_deviation: float | None
    real_inception_score: float | None
    real_images: int
    stored: bool = False

    def __str__(self) -> str:
        accuracy = ""
        if self.accuracy is not None:
            accuracy = f"  class accuracy {self.accuracy:.3f} (real, held out: {self.holdout_accuracy:.3f})"
        name, score = self.extractor, ""
        against = "to stored statistics" if self.stored else f"real-vs-real floor {self.floor:.2f}"
        if self.inception_score is not None:
            score = (
                f"is[{name}] {self.inception_score:.2f} (real {self.real_inception_score:.2f}; in ten parts "
                f"{self.inception_score_mean:.2f} +- {self.inception_score_deviation:.2f})  "
            )
        return (
            f"fid[{name}] {self.fid:.2f} (n={self.samples}, {against}){accuracy}\n"
            f"kid[{name}] {self.kid:.4g} (floor {self.kid_floor:.2g})  {score}"
            f"precision[{name}] {self.precision:.3f}, recall {self.recall:.3f} "
            f"(real halves {self.real_precision:.3f}), "
            f"density {self.density:.3f}, coverage {self.coverage:.3f}"
        )

    def columns(self) -> dict[str, float]:
        """Return the measurement as columns of ``metrics.csv``."""
        name = self.extractor
        columns = {
            f"fid[{name}]/generated": self.fid,
            f"fid[{name}]/real floor": self.floor,
            "class accuracy/generated": self.accuracy,
            f"kid[{name}]/generated": self.kid,
            f"kid[{name}]/real floor": self.kid_floor,
            f"is[{name}]/generated": self.inception_score,
            f"is[{name}]/real": self.real_inception_score,
            f"coverage[{name}]/precision": self.precision,
            f"coverage[{name}]/recall": self.recall,
        }
        return {column: value for column, value in columns.items() if value is not None}


def evaluation_columns(extractor: Extractor, data: ImageDataset) -> list[str]:
    """Return the names of `Evaluation.columns`, in the same order."""
    # Which columns there are depends on the extractor: two images tell, long before a measurement.
    blank = Evaluation(*[0.0] * 18)._replace(extractor=extractor.name)  # type: ignore[arg-type]
    has_classes = extractor(data.images[:2]).logits is not None
    if not (has_classes and extractor.holdout_accuracy is not None and data.num_classes > 1):
        blank = blank._replace(accuracy=None)
    if not has_classes:
        blank = blank._replace(inception_score=None, real_inception_score=None)
    return list(blank.columns())


class Statistics:
    """What all metrics need of one set of images; grows batch by batch, and is merged between processes.

    Args:
        dim: features per image.
        rows: rows to keep for the metrics that compare pairs.
    """

    def __init__(self, dim: int, *, rows: int = PAIRED_ROWS) -> None:
        self.moments, self.rows = StreamingMoments(dim), FeatureRows(dim, limit=rows)
        self.scores: ClassScores | None = None
        self.splits: SplitScores | None = None

    def update(
        self, seen: Extracted, keep: Tensor | None = None, *, position: Tensor | None = None, total: int = 0
    ) -> None:
        """Add the features of a batch.

        Args:
            seen: of n images.
            keep: bool (n,), which rows are kept; all by default.
            position: int64 (n,), where the images stand among ``total``, for scores of consecutive parts.
            total: images that will come, from all processes.
        """
        self.moments.update(seen.features)
        self.rows.update(seen.features if keep is None else seen.features[keep])
        if seen.logits is not None:
            self.scores = self.scores or ClassScores(seen.logits.shape[1])
            self.scores.update(seen.logits)
            if position is not None:
                self.splits = self.splits or SplitScores(seen.logits.shape[1], total=total)
                self.splits.update(seen.logits, position)

    def merge_processes(self, accelerator: Any) -> None:
        """Replace everything by that of all processes together; every process has to call it."""
        self.moments.merge_processes(accelerator)
        self.rows.merge_processes(accelerator)
        if self.scores is not None:
            self.scores.merge_processes(accelerator)
        if self.splits is not None:
            self.splits.merge_processes(accelerator)

    def inception_score(self) -> float | None:
        """Return the inception score, None without classes."""
        return None if self.scores is None else self.scores.score()


def manifold(rows: Tensor, neighbours: int = NEIGHBOURS) -> Manifold:
    """Return the manifold of rows with the usual number of neighbours, or fewer where rows are few."""
    return Manifold(rows, neighbours=min(neighbours, len(rows) - 1))


class RealStatistics:
    """The real side of every metric, and what one half of the real images reaches against the other.

    Args:
        data: the real images, four or more.
        extractor: of the features.

    Raises:
        ConfigError: for fewer images.
    """

    @torch.no_grad()
    def __init__(self, data: ImageDataset, extractor: Extractor) -> None:
        count = len(data.images)
        if count < 4:
            raise ConfigError(f"{data.name} has {count} images; measuring needs 4 or more")
        draws = torch.Generator().manual_seed(
            0
        )  # the floor is that of the data, whatever the seed of the run
        # Masks for all splits first: the images, which may lie on a disk, are gone through only once.
        in_half = torch.zeros(FLOOR_SPLITS, count, dtype=torch.bool)
        for mask in in_half:
            mask[torch.randperm(count, generator=draws).chunk(2)[0]] = True
        kept = torch.zeros(count, dtype=torch.bool)
        kept[torch.randperm(count, generator=draws)[:PAIRED_ROWS]] = True
        self.all = Statistics(extractor.dim)
        halves = [[StreamingMoments(extractor.dim) for _ in range(2)] for _ in range(FLOOR_SPLITS)]
        position = 0
        for part in data.images.split(BATCH):
            seen = extractor(part.cpu())
            here = slice(position, position + len(part))
            position += len(part)
            self.all.update(seen, kept[here])
            for mask, (first, second) in zip(in_half[:, here], halves, strict=True):
                first.update(seen.features[mask])
                second.update(seen.features[~mask])
        self.floor = sum(frechet_distance(*pair) for pair in halves) / FLOOR_SPLITS
        rows, first_half = self.all.rows.tensor(), in_half[0][kept]
        pair = rows[first_half], rows[~first_half]
        self.kid_floor = kernel_distance(*pair)
        self.precision = manifold(pair[0]).covers(pair[1])
        self.kernel_set, self.manifold = KernelSet(rows), manifold(rows)
        self.wide_manifold = manifold(rows, DENSITY_NEIGHBOURS)


class Evaluator:
    """A metric of generators against one dataset; the real side is computed once.

    Args:
        data: real images and labels.
        extractor: of the features.
        accelerator: splits the work between processes.
        stored: statistics from a file, to which ``fid`` is then measured instead.
    """

    def __init__(
        self, data: ImageDataset, extractor: Extractor, accelerator: Any, *, stored: Gaussian | None = None
    ) -> None:
        self.stored = stored
        self.extractor, self.accelerator, self.num_classes = extractor, accelerator, data.num_classes
        self.real = RealStatistics(data, extractor)

    @torch.no_grad()
    def __call__(self, sampler: Sampler, *, samples: int) -> Evaluation:
        """Measure a generator on ``samples`` images, the classes in turn.

        The noise is the same every time and the random state of training is not touched. Every process draws
        and measures its share; all get the same result, that of all images.
        """
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        position = torch.arange(samples)[rank::world]
        labels = position % self.num_classes
        fake = Statistics(self.extractor.dim, rows=-(-PAIRED_ROWS // world))  # its share of the rows
        # Logits alone do not tell: those of Inception are of other classes.
        knows_classes = self.extractor.holdout_accuracy is not None and self.num_classes > 1
        hits = 0
        with isolated_rng(rank_seed(EVALUATION_SEED, rank)):
            for part, here in zip(labels.split(BATCH), position.split(BATCH), strict=True):
                seen = self.extractor(sampler(part).cpu())
                fake.update(seen, position=here, total=samples)
                if knows_classes and seen.logits is not None:
                    hits += int((seen.logits.argmax(1) == part).sum())
        fake.merge_processes(self.accelerator)
        total = self.accelerator.reduce(
            torch.tensor([float(hits)], device=self.accelerator.device), reduction="sum"
        )
        accuracy = float(total) / samples if knows_classes else None
        result = summarize(self.real, fake, self.extractor, samples=samples, accuracy=accuracy)
        if self.stored is None:
            return result
        return result._replace(fid=frechet_distance(self.stored, fake.moments), stored=True)


def summarize(
    real: RealStatistics, fake: Statistics, extractor: Extractor, *, samples: int, accuracy: float | None
) -> Evaluation:
    """Compare two sets of images by all metrics.

    Args:
        real: of the real images.
        fake: of the generated ones, of all processes.
        extractor: of the features of both.
        samples: generated images.
        accuracy: see `Evaluation`.
    """
    fake_rows = fake.rows.tensor()
    covered = precision_recall(real.manifold, manifold(fake_rows))
    spread = density_coverage(real.wide_manifold, fake_rows)
    parts = None if fake.splits is None else fake.splits.score()
    return Evaluation(
        fid=frechet_distance(real.all.moments, fake.moments),
        floor=real.floor,
        accuracy=accuracy,
        samples=samples,
        extractor=extractor.name,
        holdout_accuracy=extractor.holdout_accuracy,
        kid=kernel_distance(real.kernel_set, fake_rows),
        kid_floor=real.kid_floor,
        precision=covered.precision,
        recall=covered.recall,
        real_precision=real.precision,
        density=spread.density,
        coverage=spread.coverage,
        inception_score=fake.inception_score(),
        inception_score_mean=None if parts is None else parts.mean,
        inception_score_deviation=None if parts is None else parts.deviation,
        real_inception_score=real.all.inception_score(),
        real_images=real.all.moments.count,
    )
