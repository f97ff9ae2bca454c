"""The blocks of a `PrevalentModel`: attention, feed-forward, text layer, cross-modal layer, embeddings."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fq_toolkit.prevalent.model.config import PrevalentConfig


class Packing:
    """Chosen positions of a batch (B, L): N rows for what acts on each alone, B texts for attention.

    Linear maps, norms and feed-forward blocks see N rows and no padding. Attention needs the texts apart
    from each other: for it the rows are spread over (B, W), each text from its first slot on, where W is
    the largest number of positions chosen in a text.

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
        """int64 (N,), places in (B, L) laid flat."""
        ranks = chosen.cumsum(dim=1) - 1
        self.width = int(ranks.max()) + 1
        """W."""
        starts = torch.arange(len(chosen), device=chosen.device).unsqueeze(1) * self.width
        self._slots = (starts + ranks).flatten().index_select(0, self.places)

    def pick(self, texts: Tensor) -> Tensor:
        """Return the rows of the chosen positions: (B, L, ...) to (N, ...)."""
        return texts.flatten(0, 1).index_select(0, self.places)

    def restore(self, rows: Tensor) -> Tensor:
        """Undo `pick`, zeros where nothing was chosen: (N, ...) to (B, L, ...)."""
        return self._place(rows, self.places, self.shape[1])

    def spread(self, rows: Tensor) -> Tensor:
        """Return texts with zeros behind their last row: (N, ...) to (B, W, ...)."""
        return self._place(rows, self._slots, self.width)

    def collect(self, texts: Tensor) -> Tensor:
        """Undo `spread`: (B, W, ...) to (N, ...)."""
        return texts.flatten(0, 1).index_select(0, self._slots)

    def _place(self, rows: Tensor, places: Tensor, width: int) -> Tensor:
        flat = rows.new_zeros(self.shape[0] * width, *rows.shape[1:])
        return flat.index_copy(0, places, rows).unflatten(0, (self.shape[0], width))


def pack_needed(needed: Tensor, mask: Tensor | None) -> tuple[Packing, Packing, Tensor | None]:
    """Return what has to be computed for the states at some positions of texts.

    Args:
        needed: (B, L), True or 1 at the positions; the first of every text is always one.
        mask: (B, L), True or 1 at tokens; None when nothing is padding.

    Returns:
        The packing of the texts, that of the needed positions, and the mask (B, W) of the first. Texts
        hold their tokens and what is needed of their padding; a text without any token holds all of its
        padding, which then attends to itself.
    """
    needed = needed.bool()
    needed = torch.cat([torch.ones_like(needed[:, :1]), needed[:, 1:]], dim=1)
    if mask is None:
        return Packing(torch.ones_like(needed)), Packing(needed), None
    tokens = mask.bool()
    packing = Packing(needed | tokens | ~tokens.any(dim=1, keepdim=True))
    return packing, Packing(needed), packing.spread(packing.pick(tokens))


class Attention(nn.Module):
    """Multi-head attention with its residual: ``norm(x + dropout(out(attend(q(x), k(y), v(y)))))``.

    One projection makes queries, keys and values at once, so that the same weights serve a stream that
    attends to itself and two streams that attend to each other.
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
            packing: of x.
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
        """Let two streams attend to each other, both from what they were before.

        Args:
            x: (B, L, H), or with a packing its rows (N, H).
            y: (B, M, H).
            x_mask: additive (B, 1, 1, L), or with a packing (B, 1, 1, W); or None.
            y_mask: additive (B, 1, 1, M), or None.
            packing: of x.
        """
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
        """Return the first of what `cross` returns, without computing the second.

        Args:
            x: (B, L, H), or with a packing its rows (N, H).
            y: (B, M, H), or with a packing of it its rows.
            y_mask: additive (B, 1, 1, M), or with a packing of y its width in place of M; or None.
            packing: of x.
            y_packing: of y.
        """
        size = x.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        (query,) = self._split(functional.linear(x, weight[:size], bias[:size]), packing, parts=1)
        key, value = self._split(functional.linear(y, weight[size:], bias[size:]), y_packing, parts=2)
        return self._finish(x, query, key, value, y_mask, packing)

    def _split(self, projected: Tensor, packing: Packing | None = None, parts: int = 3) -> tuple[Tensor, ...]:
        """Return heads (B, heads, L, H / heads), once for each part."""
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
        dropout = self.attention_dropout if self.training else 0.0
        heads = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        mixed = heads.transpose(1, 2).flatten(2)
        mixed = mixed if packing is None else packing.collect(mixed)
        return self.norm(x + self.dropout(self.out(mixed)))


class FeedForward(nn.Module):
    """``norm(x + dropout(contract(gelu(expand(x)))))``."""

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
    """A layer of the text alone: attention, then feed-forward."""

    def __init__(self, config: PrevalentConfig) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(config), FeedForward(config)

    def forward(self, text: Tensor, mask: Tensor | None, packing: Packing | None = None) -> Tensor:
        """Map (B, L, H) to (B, L, H), or with a packing its rows (N, H) to (N, H)."""
        return self.feed_forward(self.attention(text, mask, packing))


class CrossLayer(nn.Module):
    """A layer that joins text and vision: cross-attention, self-attention, feed-forward.

    One cross-attention serves both directions and reads what the layer was given, so neither direction sees
    the result of the other. The rest has its own weights for each stream.
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
        text, vision = self.cross.cross(text, vision, text_mask, vision_mask, packing)
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
        """Return the text stream of `forward` alone: all that is asked of the last layer.

        Args:
            text: (B, L, H), or with a packing its rows (N, H).
            vision: (B, M, H).
            text_mask: additive (B, 1, 1, L), or with a packing (B, 1, 1, W); or None.
            vision_mask: additive (B, 1, 1, M), or None.
            packing: of the text.
            needed: with a packing, those of its positions whose rows (R, H) are wanted: only keys and values
                are computed of the others.
        """
        text = self.cross.read(text, vision, vision_mask, packing)
        if packing is None or needed is None:
            return self.text_feed_forward(self.text_attention(text, text_mask, packing))
        rows = text.index_select(0, torch.searchsorted(packing.places, needed.places))
        return self.text_feed_forward(self.text_attention.read(rows, text, text_mask, needed, packing))


class TextEmbeddings(nn.Module):
    """``dropout(norm(word + position + type 0))``."""

    def __init__(self, config: PrevalentConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, size, padding_idx=0)
        self.position_embeddings = nn.Embedding(config.max_positions, size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size)
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids: Tensor, packing: Packing | None = None) -> Tensor:
        """Map int64 (B, L) to (B, L, H), or with a packing to its rows (N, H)."""
        places = self.position_embeddings.weight[: ids.shape[1]] + self.token_type_embeddings.weight[0]
        if packing is not None:
            ids, places = packing.pick(ids), functional.embedding(packing.places % ids.shape[1], places)
        return self.dropout(self.norm(self.word_embeddings(ids) + places))


class VisionEncoder(nn.Module):
    """``dropout(norm(linear(views)))``."""

    def __init__(self, config: PrevalentConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.vision_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, views: Tensor) -> Tensor:
        """Map (B, M, F) to (B, M, H)."""
        return self.dropout(self.norm(self.linear(views)))


def additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return a mask (B, L), True or 1 where there is something, as what is added to attention scores.

    The padding gets the smallest finite number, not minus infinity: a row without anything attends evenly
    instead of becoming NaN.
    """
    if mask is None:
        return None
    return (~mask.bool()).to(dtype)[:, None, None, :] * torch.finfo(dtype).min
