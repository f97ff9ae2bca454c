"""The inception score, with any classifier."""

import math
from typing import Any

import torch
from torch import Tensor

from fq_toolkit.fqgan.metrics.feature_rows import demand_dim, finite_rows


class ClassScores:
    """Sums over images from which the inception score follows: mergeable, float64.

    ``IS = exp(mean_x KL(p(y|x) || p(y)))`` with ``p(y)`` the mean of ``p(y|x)``, over all images at once. The
    usual mean over ten parts is smaller and depends on the order of images.

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
