"""A variational autoencoder of sentences, made of any encoder and any decoder of transformers.

Source: "Optimus: Organizing Sentences via Pre-trained Modeling of a Latent Space", arXiv 2004.04092.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn

from fq_toolkit.layers.checks import at_least_one
from fq_toolkit.optimus.model.batch import (
    TextBatch,
    Tokenizers,
    as_list,
    by_length,
    check_texts,
    decoder_specials,
    make_batch,
)
from fq_toolkit.optimus.model.building import (
    check_networks,
    choose_max_length,
    choose_pooling,
    set_generation_defaults,
    small_networks,
    with_latent,
)
from fq_toolkit.optimus.model.decoding import (
    check_latents,
    decoder_logits,
    evaluating,
    write_texts,
)
from fq_toolkit.optimus.model.hub import load_pretrained
from fq_toolkit.optimus.model.importance import importance_estimate
from fq_toolkit.optimus.model.interpolation import analogy_latents, interpolate_latents
from fq_toolkit.optimus.model.losses import VAEOutput, token_nll, vae_loss
from fq_toolkit.optimus.model.posterior import Posterior
from fq_toolkit.optimus.model.saving import load_vae, save_vae
from fq_toolkit.optimus.model.sentence_noise import SentenceNoise

logger = logging.getLogger("fq_toolkit")


class SentenceVAE(nn.Module):
    """``q(z|x) = N(mu, sigma^2)`` by an encoder, ``p(x|z)`` by a decoder with a latent in it, prior N(0, I).

    The encoder's sentence vector h (BERT's pooled [CLS]) goes through one projection without bias:
    ``(mu, log sigma^2) = W_E h`` (arXiv 2004.04092, section 3.1). How the decoder reads z is described in
    `fq_toolkit.inject_latent` (section 3.2). It begins with BOS, ends with EOS and is greedy by default.

    Args:
        encoder: an encoder of transformers, ``BertModel`` for example.
        decoder: a language model of transformers; one without a latent gets one.
        tokenizers: of encoder and decoder; the decoder's has PAD, BOS and EOS.
        latent_size: nz.
        mode: where a decoder without a latent gets it: "memory" (default), "embedding" or "both".
        pooling: "pooler", "cls" or "mean"; by default the first of these that the encoder has.
        max_length: most tokens of a sentence, special ones included; by default what both networks have
            positions for, but at most 512. Longer sentences are truncated, which is logged and counted.
        init_std: standard deviation of the weights of the projection at the start.

    Raises:
        TypeError: not models of transformers.
        ValueError: parts that do not fit together: another latent size in the decoder, a vocabulary that is
            too small for its tokenizer, a tokenizer without EOS.

    Example:
        >>> from fq_toolkit.optimus import train_tokenizers
        >>> tokenizers = train_tokenizers(["a man rides a horse .", "two dogs play ."], kind="word")
        >>> vae = SentenceVAE.from_scratch(tokenizers, latent_size=8, width=32)
        >>> vae.encode(["a man rides ."]).mean.shape
        torch.Size([1, 8])
        >>> len(vae.interpolate("a man rides .", "two dogs play .", steps=5, max_new_tokens=4))
        5
    """

    def __init__(
        self,
        encoder: Any,
        decoder: Any,
        tokenizers: Tokenizers,
        *,
        latent_size: int = 32,
        mode: str | None = None,
        pooling: str | None = None,
        max_length: int | None = None,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        self.latent_size = at_least_one("latent_size", latent_size)
        self.tokenizers = Tokenizers(*tokenizers)
        check_networks(encoder, decoder, self.tokenizers)
        self.pooling = choose_pooling(encoder, self.tokenizers.encoder, pooling)
        self.encoder = encoder
        self.decoder = with_latent(decoder, latent_size, mode)
        set_generation_defaults(self.decoder, self.tokenizers.decoder)
        self.linear = nn.Linear(encoder.config.hidden_size, 2 * latent_size, bias=False)
        nn.init.normal_(self.linear.weight, std=init_std)
        self.linear.to(device=encoder.device, dtype=encoder.dtype)
        self.max_length = choose_max_length(encoder, self.decoder, max_length)
        self._bos = decoder_specials(self.tokenizers.decoder)[0]

    # For training: tensors in, tensors out -----------------------------------------------------------------

    def sentence_vector(self, encoder_ids: Tensor, encoder_mask: Tensor) -> Tensor:
        """Encode token ids (B, S) with their mask (B, S) into one vector each, (B, hidden)."""
        outputs = self.encoder(input_ids=encoder_ids, attention_mask=encoder_mask)
        if self.pooling == "pooler":
            return outputs.pooler_output
        if self.pooling == "cls":
            return outputs.last_hidden_state[:, 0]
        # The mean over tokens, without padding.
        hidden = outputs.last_hidden_state
        weights = encoder_mask[:, :, None].to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1)

    def posterior(self, encoder_ids: Tensor, encoder_mask: Tensor) -> Posterior:
        """Compute ``q(z|x)`` of token ids (B, S) with their mask (B, S): mean and logvar (B, nz), float32."""
        vector = self.sentence_vector(encoder_ids, encoder_mask)
        return Posterior(*self.linear(vector).float().chunk(2, dim=-1))

    def nll(self, z: Tensor, decoder_ids: Tensor, decoder_mask: Tensor) -> Tensor:
        """Compute ``-log p(x|z)`` in nats, summed over the tokens of a sentence and EOS.

        Args:
            z: (B, nz).
            decoder_ids: (B, T), BOS first, padded on the right.
            decoder_mask: (B, T).

        Returns:
            (B,) in float32.
        """
        # Attention is causal and padding is on the right, so no mask is needed. PAD is replaced because
        # models warn about PAD in an input without a mask.
        ids = decoder_ids.masked_fill(decoder_mask == 0, self._bos)[:, :-1]
        logits = decoder_logits(self.decoder, ids, z, self._bos)
        return token_nll(logits, decoder_ids[:, 1:], decoder_mask[:, 1:])

    def forward(
        self,
        batch: TextBatch,
        *,
        beta: float = 1.0,
        free_bits: float = 0.0,
        length_weighted: bool = False,
        deterministic: bool = False,
        unit_variance: bool = False,
        generator: torch.Generator | None = None,
    ) -> VAEOutput:
        """Compute the training loss of each sentence; see `fq_toolkit.optimus.model.losses.vae_loss`.

        Args:
            batch: B sentences.
            beta: weight of the KL term.
            free_bits: threshold per dimension, in nats, below which its KL does not count.
            length_weighted: divide the NLL by the number of tokens.
            deterministic: decode from the mean, without noise, as an autoencoder does; usually with beta 0.
            unit_variance: take ``N(mean, 1)`` for the posterior, whatever variance the encoder gives, so that
                the KL is ``mean^2 / 2`` per dimension. The release calls it ``use_deterministic_connect``
                (``fb_mode`` 2), although it adds noise, and has no free bits with it.
            generator: source of the noise.

        Returns:
            Loss, NLL, KL and token counts, (B,) each.
        """
        q = self.posterior(batch.encoder_ids, batch.encoder_mask)
        if unit_variance:
            q = Posterior(q.mean, torch.zeros_like(q.mean))
        z = q.mean if deterministic else q.sample(generator)
        nll = self.nll(z, batch.decoder_ids, batch.decoder_mask)
        tokens = batch.decoder_mask.sum(1) - 1
        return vae_loss(nll, q.kl(), tokens, beta=beta, threshold=free_bits, length_weighted=length_weighted)

    # For use: sentences in, sentences out ------------------------------------------------------------------

    def batch(self, texts: Sequence[str]) -> TextBatch:
        """Make a batch of sentences on the model's device; log how many were truncated."""
        texts = check_texts(texts)
        batch = make_batch(texts, self.tokenizers, max_length=self.max_length)
        if batch.truncated:
            logger.warning(
                "%d of %d sentences are longer than %d tokens and lost their end",
                batch.truncated, len(texts), self.max_length,
            )  # fmt: skip
        return batch.to(self.device)

    def encode(self, texts: Sequence[str], *, batch_size: int = 64) -> Posterior:
        """Encode sentences into their posteriors.

        Args:
            texts: N sentences.
            batch_size: sentences per forward.

        Returns:
            Mean and logvar (N, nz), on the model's device, without gradients.

        Raises:
            ValueError: an empty sentence, or a posterior that is not finite.
        """
        texts = check_texts(texts)
        mean = torch.empty(len(texts), self.latent_size, device=self.device)
        logvar = torch.empty_like(mean)
        with evaluating(self):
            for rows in by_length(texts, batch_size):
                batch = self.batch([texts[row] for row in rows])
                mean[rows], logvar[rows] = self.posterior(batch.encoder_ids, batch.encoder_mask)
        bad = torch.nonzero(~(mean.isfinite() & logvar.isfinite()).all(1)).flatten().tolist()
        if bad:
            raise ValueError(
                f"the posterior of {len(bad)} sentence(s) is not finite, sentence {bad[0]} first; "
                "the weights are damaged or training has diverged"
            )
        return Posterior(mean, logvar)

    def decode(self, z: Tensor, *, batch_size: int = 64, **options: Any) -> list[str]:
        """Write a sentence for each latent, greedily unless options say otherwise.

        Args:
            z: (N, nz).
            batch_size: sentences that are written at once.
            **options: of the decoder's ``generate``: ``max_new_tokens`` (64 by default),
                ``do_sample=True, temperature=, top_p=, top_k=``, ``num_beams=``, ``num_return_sequences=``,
                ``guidance_scale=, null_latent=``, ``generation_config=`` ...

        Returns:
            N sentences, or N times ``num_return_sequences``, those of one latent next to each other.

        Raises:
            TypeError: an option that generate does not have.
            ValueError: latents of another shape or size, or that are not finite.
        """
        check_latents(z, self.latent_size)
        latents = z.to(device=self.device, dtype=torch.float32)
        tokenizer, limit = self.tokenizers.decoder, self.max_length
        with evaluating(self):
            # max_length tokens after BOS fit: the last one needs no position, as nothing follows it.
            return write_texts(
                self.decoder, tokenizer, latents, batch_size=batch_size, longest=limit, **options
            )

    def reconstruct(self, texts: Sequence[str], **options: Any) -> list[str]:
        """Encode sentences and decode the means of their posteriors; options as in `decode`."""
        return self.decode(self.encode(texts).mean, **options)

    def sample(self, n: int, *, generator: torch.Generator | None = None, **options: Any) -> list[str]:
        """Write n sentences from latents drawn from the prior N(0, I); options as in `decode`."""
        place = self.device if generator is None else generator.device
        z = torch.randn(at_least_one("n", n), self.latent_size, generator=generator, device=place)
        return self.decode(z, **options)

    def interpolate(
        self, a: str, b: str, steps: int = 10, *, kind: str = "linear", **options: Any
    ) -> list[str]:
        """Write the sentences on the way from a to b.

        Args:
            a: a sentence.
            b: another one.
            steps: how many sentences, those of a and b among them.
            kind: "linear" or "spherical"; see `interpolate_latents`.
            **options: as in `decode`.

        Returns:
            ``steps`` sentences.
        """
        start, end = self.encode([a, b]).mean
        return self.decode(interpolate_latents(start, end, steps, kind=kind), **options)

    @overload
    def analogy(self, a: str, b: str, c: str, degree: float = 1.0, **options: Any) -> str: ...

    @overload
    def analogy(
        self, a: Sequence[str], b: Sequence[str], c: Sequence[str], degree: float = 1.0, **options: Any
    ) -> list[str]: ...

    def analogy(self, a: Any, b: Any, c: Any, degree: float = 1.0, **options: Any) -> Any:
        """Write the sentence d that is to c as b is to a: ``z_d = z_c + degree (z_b - z_a)``.

        Source: arXiv 2004.04092, section 4.2.

        Args:
            a: a sentence, or N of them.
            b: what a becomes; as many.
            c: what is to change in the same way; as many.
            degree: how far to go; 0 writes c again.
            **options: as in `decode`.

        Returns:
            A sentence, or N of them.

        Raises:
            ValueError: lists of different lengths.
        """
        if isinstance(a, str) or isinstance(b, str) or isinstance(c, str):
            return self.analogy([a], [b], [c], degree, **options)[0]
        a, b, c = as_list(a), as_list(b), as_list(c)
        if not len(a) == len(b) == len(c):
            raise ValueError(f"expected three lists of one length, got {len(a)}, {len(b)} and {len(c)}")
        of_a, of_b, of_c = self.encode([*a, *b, *c]).mean.chunk(3)
        return self.decode(analogy_latents(of_a, of_b, of_c, degree), **options)

    def log_likelihood(
        self,
        texts: Sequence[str],
        *,
        iw: int = 100,
        batch_size: int = 64,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Estimate ``log p(x)`` in nats by importance sampling; see `importance.importance_estimate`.

        ``log 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x)`` with ``z_k ~ q(z|x)``: a lower bound on average, tighter
        with more draws.

        Args:
            texts: N sentences.
            iw: K, draws per sentence; 1 gives a draw of the ELBO.
            batch_size: rows per forward of the decoder.
            generator: source of the draws. Each sentence has its own, whatever the batches and the order.

        Returns:
            (N,) in float64, on the CPU.
        """
        texts = check_texts(texts)
        at_least_one("iw", iw)
        noise = SentenceNoise(texts, generator)
        result = torch.empty(len(texts), dtype=torch.float64)
        with evaluating(self):
            for rows in by_length(texts, batch_size):
                batch = self.batch([texts[row] for row in rows])
                drawn = noise.normal(rows, iw, self.latent_size)
                estimate = importance_estimate(self, batch, draws=iw, rows=batch_size, noise=drawn)
                result[rows] = estimate.log_px.cpu()
        return result

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return self.linear.weight.device

    @classmethod
    def from_scratch(cls, tokenizers: Tokenizers, **settings: Any) -> SentenceVAE:
        """Make a small BERT and GPT-2 with random weights; see `building.small_networks`."""
        names = ("width", "layers", "heads", "dropout", "positions")
        sizes = {name: settings.pop(name) for name in names if name in settings}
        return cls(*small_networks(tokenizers, **sizes), tokenizers, **settings)

    @classmethod
    def from_hub(
        cls,
        encoder: str,
        decoder: str,
        *,
        latent_size: int = 32,
        mode: str = "memory",
        pooling: str | None = None,
        **options: Any,
    ) -> SentenceVAE:
        """Load pretrained networks and connect them by a new latent; see `hub.load_pretrained`.

        Args:
            encoder: name on the hub, or a folder.
            decoder: name on the hub, or a folder.
            latent_size: nz.
            mode: where the decoder gets its latent.
            pooling: as in the class; a checkpoint without a pooler has "cls" and "mean".
            **options: of ``from_pretrained``.
        """
        networks = load_pretrained(encoder, decoder, **options)
        return cls(*networks, latent_size=latent_size, mode=mode, pooling=pooling)

    def save_pretrained(self, folder: str | Path) -> None:
        """Save networks, tokenizers and settings; see `fq_toolkit.optimus.model.saving.save_vae`."""
        save_vae(self, folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> SentenceVAE:
        """Load what `save_pretrained` saved; see `fq_toolkit.optimus.model.saving.load_vae`."""
        return load_vae(cls, folder, **options)
