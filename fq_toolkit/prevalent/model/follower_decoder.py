"""The decoder of the follower: one step from what is read and seen to the scores of the neighbours."""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class DecoderState(NamedTuple):
    """What the decoder carries from step to step.

    hidden: (B, hidden).
    cell: (B, hidden).
    attended: (B, hidden), text and hidden state merged.
    action: (B, F), features of the neighbour that was chosen; zeros at the start.
    """

    hidden: Tensor
    cell: Tensor
    attended: Tensor
    action: Tensor

    def rows(self, index: Tensor) -> "DecoderState":
        """Return the states of some rows."""
        return DecoderState(*(part[index] for part in self))


def attend(query: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean of the keys, weighted by the softmax of their scaled products with the query.

    Args:
        query: (B, D).
        keys: (B, L, D).
        mask: bool (B, L), true where there is something; everywhere by default.

    Returns:
        (B, D).
    """
    scores = torch.einsum("bd,bld->bl", query, keys) / keys.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return torch.einsum("bl,bld->bd", scores.softmax(-1), keys)


class PanoramicDecoder(nn.Module):
    """An LSTM over steps that looks at the panorama, reads the instruction and scores the neighbours.

    ::

        seen = attention of the last merged state over the 36 views
        hidden = LSTMCell([previous action, seen, pooled])
        merged = tanh(W [attention of hidden over the words, hidden])
        score of neighbour k = <W merged, features of k> / sqrt(F);  score of stopping = w . merged + b

    Args:
        feature_dim: F, width of view features with their angles.
        context_dim: C, width of the context of the words.
        pooled_dim: width of the pooled cross-modal state.
        hidden_size: of the LSTM.
        dropout: of states.

    Source: speaker-follower, arXiv 1806.02724, section 3; R2R-EnvDrop, arXiv 1904.04195, section 3.2.
    """

    def __init__(
        self, *, feature_dim: int, context_dim: int, pooled_dim: int, hidden_size: int, dropout: float
    ) -> None:
        super().__init__()
        self.action = nn.Linear(feature_dim, hidden_size)
        self.view_query = nn.Linear(hidden_size, feature_dim, bias=False)
        self.cell = nn.LSTMCell(hidden_size + feature_dim + pooled_dim, hidden_size)
        self.word_query = nn.Linear(hidden_size, context_dim, bias=False)
        self.merge = nn.Linear(context_dim + hidden_size, hidden_size)
        self.neighbor_query = nn.Linear(hidden_size, feature_dim, bias=False)
        self.stop = nn.Linear(hidden_size, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        state: DecoderState,
        context: Tensor,
        words: Tensor,
        pooled: Tensor,
        views: Tensor,
        neighbors: Tensor,
    ) -> tuple[Tensor, DecoderState]:
        """Do one step.

        Args:
            state: of the last step.
            context: (B, L, C), one row a word.
            words: bool (B, L), true for words.
            pooled: (B, pooled_dim).
            views: (B, 36, F).
            neighbors: (B, A, F); row 0 stops and is zero.

        Returns:
            Scores (B, A), those of padding not yet masked; the new state, whose ``action`` is still the old.
        """
        seen = attend(self.view_query(self.dropout(state.attended)), views)
        action = torch.tanh(self.action(state.action))
        hidden, cell = self.cell(torch.cat([action, seen, pooled], dim=-1), (state.hidden, state.cell))
        dropped = self.dropout(hidden)
        read = attend(self.word_query(dropped), context, words)
        attended = torch.tanh(self.merge(torch.cat([read, dropped], dim=-1)))
        merged = self.dropout(attended)
        scores = torch.einsum("bf,baf->ba", self.neighbor_query(merged), neighbors)
        scores = scores / neighbors.shape[-1] ** 0.5
        scores = torch.cat([self.stop(merged), scores[:, 1:]], dim=-1)
        return scores, DecoderState(hidden, cell, attended, state.action)
