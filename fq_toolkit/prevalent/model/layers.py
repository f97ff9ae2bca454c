"""The blocks of a `PrevalentModel`: attention, feed-forward, text layer, cross-modal layer, embeddings.

Own code instead of the BERT of transformers, which has no cross-attention shared by both directions and
computes padding; here batches are packed.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fq_toolkit.prevalent.model.config import PrevalentConfig


class Packing:
    """Chosen positions of a batch (B, L): as N rows for position-wise blocks, as B texts for attention.

    Linear maps, norms and feed-forward blocks see N rows and no padding. Attention needs separate texts: for
    it the rows are spread over (B, W), each text starting at its first slot, where W is the largest number of
    chosen positions in a text.

    Args:
        chosen: bool (B, L), at least one True.

    Example:
        >>> packing = Packing(torch.tensor([[True, True, True], [True, False, True]]))
        >>> rows = packing.pick(torch.tensor([[1., 2, 3], [4, 5, 6]]).unsqueeze(2))
        >>> rows.flatten().tolist()
        [1.0, 2.0, 3.0, 4.0, 6.0]
        >>> packing.spread(rows).squeeze(2).tolist()
        [[1.0, 2.0, 3.0], [4.0, 6.0, 0.0]]
        >>> packing.restore(rows).squeeze(2).tolist()
        [[1.0, 2.0, 3.0], [4.0, 0.0, 6.0]]
    """

    def __init__(self, chosen: Tensor) -> None:
        self.shape = chosen.shape
        self.places = chosen.flatten().nonzero().squeeze(1)
        """int64 (N,), places in the flattened (B, L)."""
        ranks = chosen.cumsum(dim=1) - 1
        self.width = int(ranks.max()) + 1  # the one wait for the device; W decides shapes
        # Each text begins at a multiple of W and fills its first slots, so attention sees its words in order.
        starts = torch.arange(len(chosen), device=chosen.device).unsqueeze(1) * self.width
        self._slots = (starts + ranks).flatten().index_select(0, self.places)

    def pick(self, texts: Tensor) -> Tensor:
        """Return the rows of the chosen positions: (B, L, ...) to (N, ...)."""
        return texts.flatten(0, 1).index_select(0, self.places)

    def restore(self, rows: Tensor) -> Tensor:
        """Undo `pick`, zeros where nothing was chosen: (N, ...) to (B, L, ...)."""
        return self._place(rows, self.places, self.shape[1])

    def spread(self, rows: Tensor) -> Tensor:
        """Return texts padded with zeros: (N, ...) to (B, W, ...)."""
        return self._place(rows, self._slots, self.width)

    def collect(self, texts: Tensor) -> Tensor:
        """Undo `spread`: (B, W, ...) to (N, ...)."""
        return texts.flatten(0, 1).index_select(0, self._slots)

    def _place(self, rows: Tensor, places: Tensor, width: int) -> Tensor:
        """Return rows at some places of (B, width), zeros elsewhere."""
        flat = rows.new_zeros(self.shape[0] * width, *rows.shape[1:])  # zeros, not empty: 0 * NaN is NaN
        return flat.index_copy(0, places, rows).unflatten(0, (self.shape[0], width))


def pack_needed(needed: Tensor, mask: Tensor | None) -> tuple[Packing, Packing, Tensor | None]:
    """Return the packings that suffice to compute the states at some positions of texts.

    Args:
        needed: (B, L), True or 1 at the positions; the first position of a text is always needed.
        mask: (B, L), True or 1 at tokens; None if nothing is padding.

    Returns:
        The packing of the texts, the packing of the needed positions, and the mask (B, W) of the first. Texts
        consist of their tokens and of the needed part of their padding; a text without any token consists of
        all of its padding, which then attends to itself.
    """
    needed = needed.bool()
    needed = torch.cat([torch.ones_like(needed[:, :1]), needed[:, 1:]], dim=1)  # the pooler reads the first
    if mask is None:
        return Packing(torch.ones_like(needed)), Packing(needed), None
    tokens = mask.bool()
    # Padding is computed only where it is asked for, and in texts of nothing else, which plain attention
    # would average over; without a single position a text could not attend at all.
    packing = Packing(needed | tokens | ~tokens.any(dim=1, keepdim=True))
    return packing, Packing(needed), packing.spread(packing.pick(tokens))


class Attention(nn.Module):
    """Multi-head attention with its residual.

    ::

        attend(q, k, v) = softmax(q k^T / sqrt(H / heads) + mask) v
        y = norm(x + dropout(out(attend(q(x), k(z), v(z)))))

    One projection computes queries, keys and values together, so that the same weights serve a stream that
    attends to itself (``z = x``) and two streams that attend to each other.
    """

    def __init__(self, config: PrevalentConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.heads, self.attention_dropout = config.num_heads, config.attention_dropout
        self.qkv = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size)
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, mask: Tensor | None, packing: Packing | None = None) -> Tensor:
        """Let a stream attend to itself.

        Args:
            x: (B, L, H), or with a packing its rows (N, H).
            mask: additive (B, 1, 1, L), or with a packing (B, 1, 1, W); or None.
            packing: packing of x.
        """
        query, key, value = self._split(self.qkv(x), packing)
        return self._finish(x, query, key, value, mask, packing)

    def cross(
        self,
        x: Tensor,
        y: Tensor,
        x_mask: Tensor | None,
        y_mask: Tensor | None,
        packing: Packing | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Let two streams attend to each other, both computed from the inputs.

        Args:
            x: (B, L, H), or with a packing its rows (N, H).
            y: (B, M, H).
            x_mask: additive (B, 1, 1, L), or with a packing (B, 1, 1, W); or None.
            y_mask: additive (B, 1, 1, M), or None.
            packing: packing of x.
        """
        # Both projections come before both updates: neither direction sees what the other one changed.
        x_query, x_key, x_value = self._split(self.qkv(x), packing)
        y_query, y_key, y_value = self._split(self.qkv(y))
        return (
            self._finish(x, x_query, y_key, y_value, y_mask, packing),
            self._finish(y, y_query, x_key, x_value, x_mask),
        )

    def read(
        self,
        x: Tensor,
        y: Tensor,
        y_mask: Tensor | None,
        packing: Packing | None = None,
        y_packing: Packing | None = None,
    ) -> Tensor:
        """Return the first result of `cross` without computing the second.

        Args:
            x: (B, L, H), or with a packing its rows (N, H).
            y: (B, M, H), or with a packing of it its rows.
            y_mask: additive (B, 1, 1, M), or with a packing of y its width in place of M; or None.
            packing: packing of x.
            y_packing: packing of y.
        """
        # The queries' third of the projection for x, the other two thirds for y.
        size = x.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        (query,) = self._split(functional.linear(x, weight[:size], bias[:size]), packing, parts=1)
        key, value = self._split(functional.linear(y, weight[size:], bias[size:]), y_packing, parts=2)
        return self._finish(x, query, key, value, y_mask, packing)

    def _split(self, projected: Tensor, packing: Packing | None = None, parts: int = 3) -> tuple[Tensor, ...]:
        """Split a projection into its parts, each as heads (B, heads, L, H / heads)."""
        # Rows of all texts in one sequence would attend to each other; spread, each text has its own.
        texts = projected if packing is None else packing.spread(projected)
        return tuple(
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in texts.chunk(parts, dim=-1)
        )

    def _finish(
        self,
        x: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        packing: Packing | None = None,
    ) -> Tensor:
        """Attend, map, and add the residual; the equation is that of the class."""
        dropout = self.attention_dropout if self.training else 0.0
        heads = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        mixed = heads.transpose(1, 2).flatten(2)  # the heads side by side again
        mixed = mixed if packing is None else packing.collect(mixed)
        return self.norm(x + self.dropout(self.out(mixed)))


class FeedForward(nn.Module):
    """Feed-forward block with its residual: ``norm(x + dropout(contract(gelu(expand(x)))))``."""

    def __init__(self, config: PrevalentConfig) -> None:
        super().__init__()
        self.expand = nn.Linear(config.hidden_size, config.intermediate_size)
        self.contract = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, H) to (B, L, H)."""
        return self.norm(x + self.dropout(self.contract(functional.gelu(self.expand(x)))))


class TextLayer(nn.Module):
    """A layer that sees only the text: attention, then feed-forward."""

    def __init__(self, config: PrevalentConfig) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(config), FeedForward(config)

    def forward(self, text: Tensor, mask: Tensor | None, packing: Packing | None = None) -> Tensor:
        """Map (B, L, H) to (B, L, H), or with a packing its rows (N, H) to (N, H)."""
        return self.feed_forward(self.attention(text, mask, packing))


class CrossLayer(nn.Module):
    """A layer that joins text and vision: cross-attention, self-attention, feed-forward.

    ::

        t, v = cross(text, vision), cross(vision, text)
        text, vision = ffn_t(self_t(t)), ffn_v(self_v(v))

    One cross-attention with the same weights serves both directions. Both read the inputs of the layer, so
    neither sees the result of the other. The other blocks have their own weights for each stream.

    Source: arXiv 2002.10638, section 4.2, cross-modal encoder; the shared weights are those of the released
    code.
    """

    def __init__(self, config: PrevalentConfig) -> None:
        super().__init__()
        self.cross = Attention(config)
        self.text_attention, self.text_feed_forward = Attention(config), FeedForward(config)
        self.vision_attention, self.vision_feed_forward = Attention(config), FeedForward(config)

    def forward(
        self,
        text: Tensor,
        vision: Tensor,
        text_mask: Tensor | None,
        vision_mask: Tensor | None,
        packing: Packing | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return both streams; with a packing the text is its rows (N, H)."""
        text, vision = self.cross.cross(text, vision, text_mask, vision_mask, packing)  # first, as released
        text = self.text_feed_forward(self.text_attention(text, text_mask, packing))
        return text, self.vision_feed_forward(self.vision_attention(vision, vision_mask))

    def text_only(
        self,
        text: Tensor,
        vision: Tensor,
        text_mask: Tensor | None,
        vision_mask: Tensor | None,
        packing: Packing | None = None,
        needed: Packing | None = None,
    ) -> Tensor:
        """Return only the text stream of `forward`, which is all that the last layer must compute.

        Args:
            text: (B, L, H), or with a packing its rows (N, H).
            vision: (B, M, H).
            text_mask: additive (B, 1, 1, L), or with a packing (B, 1, 1, W); or None.
            vision_mask: additive (B, 1, 1, M), or None.
            packing: packing of the text.
            needed: with a packing, the positions of it whose rows (R, H) are returned; of the others only
                keys and values are computed.
        """
        text = self.cross.read(text, vision, vision_mask, packing)
        if packing is None or needed is None:
            return self.text_feed_forward(self.text_attention(text, text_mask, packing))
        # Places are sorted, and the needed ones are among those of the packing.
        rows = text.index_select(0, torch.searchsorted(packing.places, needed.places))
        return self.text_feed_forward(self.text_attention.read(rows, text, text_mask, needed, packing))


class TextEmbeddings(nn.Module):
    """Input embeddings of the text: ``dropout(norm(word + position + type 0))``.

    Source: arXiv 2002.10638, section 4.1 (input embeddings).
    """

    def __init__(self, config: PrevalentConfig) -> None:
        super().__init__()
        size = config.hidden_size
        # padding_idx: the row of [PAD] gets no gradient from here, only through a tied output head.
        self.word_embeddings = nn.Embedding(config.vocab_size, size, padding_idx=0)
        self.position_embeddings = nn.Embedding(config.max_positions, size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size)
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids: Tensor, packing: Packing | None = None) -> Tensor:
        """Map int64 (B, L) to (B, L, H), or with a packing to its rows (N, H)."""
        places = self.position_embeddings.weight[: ids.shape[1]] + self.token_type_embeddings.weight[0]
        if packing is not None:
            # The position of a row is its place within its text.
            ids, places = packing.pick(ids), functional.embedding(packing.places % ids.shape[1], places)
        return self.dropout(self.norm(self.word_embeddings(ids) + places))


class VisionEncoder(nn.Module):
    """Input embeddings of the views: ``dropout(norm(linear(views)))``.

    Source: arXiv 2002.10638, section 4.1 (input embeddings).
    """

    def __init__(self, config: PrevalentConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.vision_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, views: Tensor) -> Tensor:
        """Map (B, M, F) to (B, M, H)."""
        return self.dropout(self.norm(self.linear(views)))


def additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Convert a mask (B, L), True or 1 at what is there, into a term (B, 1, 1, L) of attention scores.

    Padding gets the smallest finite number instead of minus infinity, so that a row of nothing but padding
    attends evenly instead of becoming NaN.
    """
    if mask is None:
        return None
    return (~mask.bool()).to(dtype)[:, None, None, :] * torch.finfo(dtype).min
