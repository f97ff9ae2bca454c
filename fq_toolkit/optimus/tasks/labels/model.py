"""A sentence VAE with labels: the decoder reads the sum of latent and label embedding.

Source: arXiv 2004.04092, section 4.3 (label-conditional text generation).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fq_toolkit.optimus.model.batch import TextBatch
from fq_toolkit.optimus.model.losses import VAEOutput, vae_loss
from fq_toolkit.optimus.model.sentence_vae import SentenceVAE


class LabelledBatch(NamedTuple):
    """Sentences and the numbers of their labels, int64 (B,)."""

    text: TextBatch
    labels: Tensor

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "LabelledBatch":
        """Return the batch on a device."""
        return LabelledBatch(
            self.text.to(device, non_blocking=non_blocking), self.labels.to(device, non_blocking=non_blocking)
        )


class LabelVAE(nn.Module):
    """A decoder ``p(x | z + e_y)``, the posterior ``q(z|x)`` and the prior N(0, I), the same for all labels.

    The label y costs no KL and everything in z does, so that the label moves out of z. An adversary speeds
    that up: a classifier c learns to read the label from z, and the encoder learns to bring its answer close
    to a uniform one. The loss of a sentence is

        L_VAE(x, y) - log c(y | stop(z)) + adversary * KL(uniform || stop(c)(. | z))

    The last term is bounded below, unlike a reversed gradient. (The release has such terms and multiplies
    them by 0.)

    Source: arXiv 2004.04092, section 4.3 (label-conditional text generation).

    Args:
        base: the sentence VAE.
        classes: number of labels.
        adversary: weight of ``KL(uniform || classifier)`` in the encoder's loss; 0 leaves both out.
    """

    def __init__(self, base: SentenceVAE, classes: int, *, adversary: float = 0.0) -> None:
        super().__init__()
        self.base, self.weight = base, adversary
        self.labels = nn.Embedding(classes, base.latent_size)
        self.reader: nn.Module | None = None
        if adversary:
            self.reader = nn.Sequential(nn.Linear(base.latent_size, 64), nn.ReLU(), nn.Linear(64, classes))

    def forward(
        self,
        batch: LabelledBatch,
        *,
        beta: float = 1.0,
        free_bits: float = 0.0,
        length_weighted: bool = False,
        deterministic: bool = False,
    ) -> VAEOutput:
        """Compute the training loss of each sentence; arguments as of `SentenceVAE.forward`."""
        text = batch.text
        q = self.base.posterior(text.encoder_ids, text.encoder_mask)
        z = q.mean if deterministic else q.sample()
        nll = self.base.nll(z + self.labels(batch.labels), text.decoder_ids, text.decoder_mask)
        tokens = text.decoder_mask.sum(1) - 1
        out = vae_loss(nll, q.kl(), tokens, beta=beta, threshold=free_bits, length_weighted=length_weighted)
        if self.reader is None:
            return out
        # One backward for both sides of the game: the classifier does not see where z comes from, and for the
        # encoder the classifier's weights are constants.
        learning = F.cross_entropy(self.reader(z.detach()), batch.labels, reduction="none")
        fixed = {name: weight.detach() for name, weight in self.reader.named_parameters()}
        logits = torch.func.functional_call(self.reader, fixed, (z,)).float()
        classes = logits.shape[1]
        undecided = -logits.log_softmax(1).mean(1) - math.log(classes)  # KL(uniform || classifier)
        return out._replace(loss=out.loss + learning + self.weight * undecided)

    def write(self, z: Tensor, labels: Tensor, **options: Any) -> list[str]:
        """Write a sentence for each latent (N, nz) and label (N,); options as in `SentenceVAE.decode`."""
        with torch.no_grad():
            return self.base.decode(z + self.labels(labels.to(self.labels.weight.device)), **options)

    def rewrite(self, texts: Sequence[str], labels: Tensor, **options: Any) -> list[str]:
        """Write sentences again with these labels."""
        return self.write(self.base.encode(texts).mean, labels, **options)
