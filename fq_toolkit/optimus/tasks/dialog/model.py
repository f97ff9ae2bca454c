"""Dialog responses from a latent space shared by contexts and responses.

Source: arXiv 2004.04092, section 4.3 (dialog response generation), after "Jointly Optimizing Diversity and
Relevance in Neural Response Generation" (SpaceFusion), arXiv 1902.11205.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fq_toolkit.optimus.model.batch import TextBatch, by_length, check_texts
from fq_toolkit.optimus.model.decoding import evaluating
from fq_toolkit.optimus.model.losses import VAEOutput, vae_loss
from fq_toolkit.optimus.model.posterior import Posterior
from fq_toolkit.optimus.model.sentence_vae import SentenceVAE


class DialogBatch(NamedTuple):
    """Contexts and their responses; the decoder's ids of a context are not used."""

    context: TextBatch
    response: TextBatch

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "DialogBatch":
        """Return the batch on a device."""
        return DialogBatch(*(part.to(device, non_blocking=non_blocking) for part in self))


def kl_between(q: Posterior, p: Posterior) -> Tensor:
    """Compute ``KL(q || p)`` in nats per dimension, (B, nz), of two diagonal Gaussians.

    ``((mean_q - mean_p)^2 / var_p + var_q / var_p - 1 - log(var_q / var_p)) / 2``.

    Example:
        >>> import torch
        >>> q = Posterior(torch.tensor([[1.0]]), torch.tensor([[0.0]]))
        >>> kl_between(q, Posterior(torch.zeros(1, 1), torch.zeros(1, 1))).item() == q.kl().item()
        True
    """
    ratio = q.logvar - p.logvar
    return 0.5 * ((q.mean - p.mean).square() * (-p.logvar).exp() + torch.expm1(ratio) - ratio)


class DialogVAE(nn.Module):
    """Posteriors ``q(z|r)`` of responses and ``q(z|c)`` of contexts with one encoder, decoder and space.

    The loss of a pair, with u uniform in [0, 1], is

        -log p(r | z_r) - fusion * log p(r | u z_c + (1 - u) z_r)
        + beta (KL(q(z|r) || q(z|c)) + context_kl * KL(q(z|c) || N(0, I)))

    so that the latents of a response lie close to those of its context, and latents between the two decode to
    the response as well. A response to a context is decoded from a draw of ``q(z|c)``: several draws give
    several responses.

    Source: arXiv 2004.04092, section 4.3 (dialog response generation); the second term is that of
    SpaceFusion, arXiv 1902.11205.

    Args:
        base: the sentence VAE; its projection gives the posterior of responses.
        fusion: weight of the second term.
        context_kl: weight of the last one.
    """

    def __init__(self, base: SentenceVAE, *, fusion: float = 0.5, context_kl: float = 0.1) -> None:
        super().__init__()
        self.base, self.fusion, self.context_kl = base, fusion, context_kl
        like = base.linear.weight  # same shape, device and scale as the projection of responses
        self.context = nn.Linear(like.shape[1], like.shape[0], bias=False).to(like)
        nn.init.normal_(self.context.weight, std=float(like.detach().std()))

    def context_posterior(self, ids: Tensor, mask: Tensor) -> Posterior:
        """Compute ``q(z|c)`` of token ids (B, S) with their mask (B, S)."""
        vector = self.base.sentence_vector(ids, mask)
        return Posterior(*self.context(vector).float().chunk(2, dim=-1))

    def forward(
        self,
        batch: DialogBatch,
        *,
        beta: float = 1.0,
        free_bits: float = 0.0,
        length_weighted: bool = False,
        deterministic: bool = False,
    ) -> VAEOutput:
        """Compute the training loss of each pair; arguments as of `SentenceVAE.forward`.

        Returns:
            The loss, the NLL of the response from its own latent, the KL to the posterior of the context, and
            the number of tokens.
        """
        context, response = batch
        q = self.base.posterior(response.encoder_ids, response.encoder_mask)
        p = self.context_posterior(context.encoder_ids, context.encoder_mask)
        z_r, z_c = (d.mean if deterministic else d.sample() for d in (q, p))
        share = torch.rand(len(z_r), 1, device=z_r.device)
        between = share * z_c + (1 - share) * z_r
        # Both decodings in one call, over twice the rows: one pass through the decoder is quicker than two.
        ids, mask = (part.repeat(2, 1) for part in (response.decoder_ids, response.decoder_mask))
        nll, fused = self.base.nll(torch.cat([z_r, between]), ids, mask).chunk(2)
        tokens = response.decoder_mask.sum(1) - 1
        out = vae_loss(
            nll, kl_between(q, p), tokens, beta=beta, threshold=free_bits, length_weighted=length_weighted
        )
        second = fused / (tokens + 1) if length_weighted else fused
        return out._replace(loss=out.loss + self.fusion * second + beta * self.context_kl * p.kl().sum(1))

    def respond(
        self,
        contexts: Sequence[str],
        *,
        samples: int = 10,
        generator: torch.Generator | None = None,
        batch_size: int = 64,
        **options: Any,
    ) -> list[list[str]]:
        """Write responses.

        Args:
            contexts: N texts.
            samples: responses per context; the first one is that of the mean.
            generator: source of the other draws.
            batch_size: texts at once.
            **options: as in `SentenceVAE.decode`.

        Returns:
            N lists of ``samples`` responses.
        """
        contexts = check_texts(contexts)
        mean, logvar = torch.empty(2, len(contexts), self.base.latent_size, device=self.base.device)
        with evaluating(self):
            for rows in by_length(contexts, batch_size):
                batch = self.base.batch([contexts[row] for row in rows])
                mean[rows], logvar[rows] = self.context_posterior(batch.encoder_ids, batch.encoder_mask)
        p = Posterior(mean, logvar)
        # The mean takes the place of the first draw.
        z = torch.cat([p.mean[None], p.sample(generator, count=samples)[1:]])  # (samples, N, nz)
        texts = self.base.decode(z.flatten(0, 1), batch_size=batch_size, **options)
        return [texts[row :: len(contexts)] for row in range(len(contexts))]
