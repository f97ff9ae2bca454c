"""The inception score, with any classifier."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fq_toolkit.fqgan.metrics.feature_rows import demand_dim, finite_rows


class ClassScores:
    """Sums over images from which the inception score follows: mergeable, float64.

    ``IS = exp(mean_x KL(p(y|x) || p(y)))`` with ``p(y)`` the mean of ``p(y|x)``, over all images at once; see
    `SplitScores` for the mean over ten parts that papers print, which is smaller.

    Args:
        num_classes: classes of the classifier.

    Source: Salimans et al., arXiv 1606.03498, section 4.

    Example:
        >>> scores = ClassScores(2)
        >>> scores.update(torch.tensor([[100.0, 0.0], [0.0, 100.0]]))
        >>> round(scores.score(), 6)
        2.0
    """

    def __init__(self, num_classes: int) -> None:
        demand_dim(num_classes)
        self.num_classes, self.count = num_classes, 0
        self.probabilities = torch.zeros(num_classes, dtype=torch.float64)
        self.negative_entropy = 0.0

    def update(self, logits: Tensor) -> None:
        """Take in class logits (n, num_classes).

        Raises:
            ValueError: for another shape, or for values that are not finite.
        """
        log_p = finite_rows(logits.cpu(), self.num_classes, what="logits").log_softmax(1)
        self.count += len(log_p)
        self.probabilities += log_p.exp().sum(0)
        # xlogy has 0 log 0 = 0 where a probability underflows.
        self.negative_entropy += float(torch.special.xlogy(log_p.exp(), log_p.exp()).sum())

    def merge(self, other: "ClassScores") -> None:
        """Take in all images of another object.

        Raises:
            ValueError: when it has another number of classes.
        """
        if other.num_classes != self.num_classes:
            raise ValueError(f"cannot merge scores of {other.num_classes} classes into {self.num_classes}")
        self.count += other.count
        self.probabilities += other.probabilities
        self.negative_entropy += other.negative_entropy

    def merge_processes(self, accelerator: Any) -> None:
        """Replace the sums by those of all processes together; every process has to call it."""
        from accelerate.utils import gather_object

        if accelerator.num_processes == 1:
            return
        parts = gather_object([(self.count, self.probabilities, self.negative_entropy)])
        self.__init__(self.num_classes)  # type: ignore[misc]
        for count, probabilities, negative_entropy in parts:
            self.count += count
            self.probabilities += probabilities
            self.negative_entropy += negative_entropy

    def score(self) -> float:
        """Return the inception score, in [1, num_classes].

        Raises:
            ValueError: without images.
        """
        if self.count == 0:
            raise ValueError("an inception score needs at least one image")
        mean = self.probabilities / self.count
        return math.exp(self.negative_entropy / self.count - float(torch.special.xlogy(mean, mean).sum()))


class MeanScore(NamedTuple):
    """The inception score as papers print it.

    mean: over the parts.
    deviation: population standard deviation over the parts.
    """

    mean: float
    deviation: float


class SplitScores:
    """Inception scores of consecutive parts of the images, each with a ``p(y)`` of its own.

    A part sees fewer images, so its marginal is nearer to each of them and the mean is below the score of all
    images at once.

    Args:
        num_classes: classes of the classifier.
        total: images that will come, from all processes.
        splits: parts; with fewer images than parts, one each.

    Source: Salimans et al., arXiv 1606.03498, section 4, and the released ``get_inception_score``.
    """

    def __init__(self, num_classes: int, *, total: int, splits: int = 10) -> None:
        if total < 1 or splits < 1:
            raise ValueError(f"{splits} parts of {total} images; expected at least 1 of each")
        self.total = total
        self.parts = [ClassScores(num_classes) for _ in range(min(splits, total))]

    def update(self, logits: Tensor, position: Tensor) -> None:
        """Take in class logits.

        Args:
            logits: (n, num_classes).
            position: int64 (n,), where the images stand among all ``total``: processes draw every n-th.
        """
        part_of = position * len(self.parts) // self.total
        for index in part_of.unique().tolist():
            self.parts[index].update(logits[part_of == index])

    def merge_processes(self, accelerator: Any) -> None:
        """Replace the sums by those of all processes together; every process has to call it."""
        for part in self.parts:
            part.merge_processes(accelerator)

    def score(self) -> MeanScore:
        """Return mean and deviation over the parts.

        Raises:
            ValueError: when a part has no images.
        """
        scores = torch.tensor([part.score() for part in self.parts], dtype=torch.float64)
        return MeanScore(float(scores.mean()), float(scores.std(correction=0)))
