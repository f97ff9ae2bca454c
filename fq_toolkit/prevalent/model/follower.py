"""FollowerAgent: an agent that reads an instruction and chooses a neighbour at every step.

One step of the decoder, and the agent around it; `rollout` lets a batch of agents walk.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fq_toolkit.prevalent.model.encoder import PrevalentModel, TextCache
from fq_toolkit.prevalent.text.length_limit import Fitted, LongInstructions, fit_items
from fq_toolkit.prevalent.text.vocabulary import LONGEST, Vocabulary
from fq_toolkit.prevalent.world.environment_dropout import mask_features
from fq_toolkit.prevalent.world.items import NavItem
from fq_toolkit.prevalent.world.observation import Observation
from fq_toolkit.training.errors import ConfigError


class DecoderState(NamedTuple):
    """State of the decoder between steps.

    hidden: (B, hidden).
    cell: (B, hidden).
    attended: (B, hidden), the hidden state merged with the attended text.
    action: (B, F), features of the chosen neighbour; zeros at the start.
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

    ::

        attend(q, K) = sum over i of softmax(q . k_i / sqrt(D))_i k_i

    Args:
        query: (B, D).
        keys: (B, L, D).
        mask: bool (B, L), true for real keys; by default all are.

    Returns:
        (B, D).
    """
    scores = torch.einsum("bd,bld->bl", query, keys) / keys.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return torch.einsum("bl,bld->bd", scores.softmax(-1), keys)


class PanoramicDecoder(nn.Module):
    """An LSTM over steps that attends to the panorama and the instruction and scores the neighbours.

    ::

        seen = attention of the last merged state over the 36 views
        hidden = LSTMCell([previous action, seen, pooled])
        merged = tanh(W [attention of hidden over the words, hidden])
        score of neighbour k = <W merged, features of k> / sqrt(F);  score of stopping = w . merged + b

    Args:
        feature_dim: F, width of view features with their angles.
        context_dim: C, width of the context of the words.
        pooled_dim: width of the pooled cross-modal state.
        hidden_size: width of the LSTM.
        dropout: dropout of states.

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
        """Compute one step.

        Args:
            state: state of the last step.
            context: (B, L, C), one row per word.
            words: bool (B, L), true for words.
            pooled: (B, pooled_dim).
            views: (B, 36, F).
            neighbors: (B, A, F); row 0 stops and is zero.

        Returns:
            Scores (B, A), in which padding is not yet masked, and the new state, whose ``action`` is still
            that of the last step.
        """
        # What was read last decides where to look, and what is seen decides what to read next.
        seen = attend(self.view_query(self.dropout(state.attended)), views)
        action = torch.tanh(self.action(state.action))
        hidden, cell = self.cell(torch.cat([action, seen, pooled], dim=-1), (state.hidden, state.cell))
        dropped = self.dropout(hidden)  # the LSTM's own state stays whole
        read = attend(self.word_query(dropped), context, words)
        attended = torch.tanh(self.merge(torch.cat([read, dropped], dim=-1)))
        merged = self.dropout(attended)
        scores = torch.einsum("bf,baf->ba", self.neighbor_query(merged), neighbors)
        scores = scores / neighbors.shape[-1] ** 0.5
        # The row of "stop" has no features, so its score is learned from the state.
        scores = torch.cat([self.stop(merged), scores[:, 1:]], dim=-1)
        return scores, DecoderState(hidden, cell, attended, state.action)


class EncodedInstructions(NamedTuple):
    """Instructions of a batch after reading, once per episode.

    mask: bool (B, L), true for tokens.
    text: (B, L, H), output of the text layers.
    context: (B, L, C), output of the BiLSTM.
    state: initial state of the decoder.
    """

    mask: Tensor
    text: Tensor
    context: Tensor
    state: DecoderState

    def rows(self, index: Tensor) -> "EncodedInstructions":
        """Return some rows, possibly repeated."""
        return EncodedInstructions(
            self.mask[index], self.text[index], self.context[index], self.state.rows(index)
        )


class FollowerAgent(nn.Module):
    """The agent of R2R: text layers -> BiLSTM context -> panoramic attention decoder, with a critic.

    At every step the cross-modal layers of the model see the 36 views together with the instruction. Their
    word states are added to the context and their pooled state enters the decoder, so what the model knows
    about words and views is available at each step.

    Args:
        model: a `PrevalentModel`, pretrained or new.
        vocabulary: the words that the model knows.
        feature_dim: width of a view feature without its angles.
        angle_dim: width of the angle features.
        hidden_size: width of the decoder.
        dropout: dropout of states.
        cross_modal: whether the cross-modal layers are used; without them only the decoder sees the views.
        max_tokens: length of the longest instruction, without ``[CLS]`` and ``[SEP]``.
        long_instructions: whether longer ones are refused or cut at their end.

    Raises:
        ValueError: for an odd hidden size.
        ConfigError: if model and features do not fit, or the model has fewer positions than tokens.

    Source: PREVALENT, arXiv 2002.10638, section 5 (adapting to new tasks); R2R-EnvDrop, arXiv 1904.04195,
    section 3.2.
    """

    blocked_order: Tensor

    def __init__(
        self,
        model: PrevalentModel,
        vocabulary: Vocabulary,
        *,
        feature_dim: int,
        angle_dim: int = 128,
        hidden_size: int = 64,
        dropout: float = 0.3,
        cross_modal: bool = True,
        max_tokens: int = LONGEST,
        long_instructions: LongInstructions = "refuse",
    ) -> None:
        super().__init__()
        if hidden_size < 2 or hidden_size % 2:
            raise ValueError(f"hidden_size must be even and at least 2, got {hidden_size}")
        # Said now and in words: the first product of matrices would fail with two numbers only.
        known = model.config.vision_size - angle_dim
        if known != feature_dim:
            raise ConfigError(
                f"the model was made for features of width {known}, the world has features of width "
                f"{feature_dim}: give --feature-dim {known} or another model"
            )
        if max_tokens + 2 > model.config.max_positions:
            raise ConfigError(
                f"max_tokens is {max_tokens}, with [CLS] and [SEP] {max_tokens + 2}; the model has "
                f"{model.config.max_positions} positions: give at most {model.config.max_positions - 2}, or "
                "another model"
            )
        self.max_tokens, self.long_instructions = max_tokens, long_instructions
        width = model.config.hidden_size
        self.model, self.vocabulary, self.cross_modal = model, vocabulary, cross_modal
        self.feature_dim = feature_dim
        self.context = nn.LSTM(width, hidden_size // 2, bidirectional=True, batch_first=True)
        self.start = nn.Linear(hidden_size, hidden_size)
        self.grounding = nn.Linear(width, hidden_size)
        self.decoder = PanoramicDecoder(
            feature_dim=feature_dim + angle_dim,
            context_dim=hidden_size,
            pooled_dim=width if cross_modal else 0,
            hidden_size=hidden_size,
            dropout=dropout,
        )
        # Estimates the return, for A2C; imitation leaves it untrained.
        self.critic = nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, 1))
        self.dropout = nn.Dropout(dropout)
        # The model was pretrained on angles as [sin h]*32, [cos h]*32, ...; the environment returns
        # [sin h, cos h, ...]*32. Reordering the columns is all that is needed.
        blocked = torch.arange(angle_dim).view(angle_dim // 4, 4).T.reshape(-1)
        order = torch.cat([torch.arange(feature_dim), feature_dim + blocked])
        self.register_buffer("blocked_order", order, persistent=False)

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return self.start.weight.device

    def fit(self, items: Sequence[NavItem], *, source: str) -> Fitted:
        """Encode instructions as `read` does; see `fit_encodings`.

        Args:
            items: tasks.
            source: file or name of a world, for messages.

        Raises:
            DataError: for one that is longer than the limit, where these are refused.
        """
        return fit_items(
            items,
            self.vocabulary,
            source=source,
            limit=self.max_tokens,
            long_instructions=self.long_instructions,
        )

    def read(self, items: Sequence[NavItem]) -> EncodedInstructions:
        """Read the instructions of items, once per episode.

        Raises:
            DataError: for one that is longer than the limit, where these are refused.
        """
        fitted = self.fit(items, source="instructions")
        ids = torch.tensor(self.vocabulary.frame(fitted.encodings)).to(self.device)
        mask, length = ids != 0, ids.shape[1]
        text = self.model.cache_text(ids, mask).states
        lengths = mask.sum(dim=1).cpu()  # on the host, as packing requires
        packed = nn.utils.rnn.pack_padded_sequence(
            self.dropout(text), lengths, batch_first=True, enforce_sorted=False
        )
        output, (last, last_cell) = self.context(packed)
        context = nn.utils.rnn.pad_packed_sequence(output, batch_first=True, total_length=length)[0]
        # The last states of both directions start the decoder.
        hidden = torch.tanh(self.start(torch.cat([last[0], last[1]], dim=-1)))
        cell = torch.cat([last_cell[0], last_cell[1]], dim=-1)
        no_action = hidden.new_zeros(len(items), self.decoder.action.in_features)
        state = DecoderState(hidden, cell, hidden, no_action)
        return EncodedInstructions(mask, text, self.dropout(context), state)

    def forward(
        self,
        encoded: EncodedInstructions,
        state: DecoderState,
        observation: Observation,
        feature_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, DecoderState]:
        """Score the actions of an observation.

        Args:
            encoded: the instructions.
            state: state of the last step, or ``encoded.state``.
            observation: observation of an environment that returns tensors, with interleaved angle features.
            feature_mask: (D,), mask of environment dropout.

        Returns:
            Log-probabilities (B, A), -inf for padding; values (B,) of the critic; and the new state, which
            `act` takes together with the chosen actions.
        """
        views = mask_features(observation.view_features(), feature_mask)
        neighbors = mask_features(observation.candidate_features(), feature_mask)
        # Without cross-modal layers the pooled state has width 0, and so has its part of the decoder.
        words, pooled = encoded.text, views.new_zeros(len(views), 0)
        if self.cross_modal:
            cache = TextCache(words, encoded.mask)
            words, pooled = self.model(None, None, views[..., self.blocked_order], cache=cache)
        # The BiLSTM has read each word in its order; what the word means here and now is added.
        context = encoded.context + self.grounding(words)
        scores, state = self.decoder(state, context, encoded.mask, pooled, views, neighbors)
        scores = scores.masked_fill(~observation.action_mask, -torch.inf)
        value = self.critic(self.dropout(state.attended)).squeeze(-1)
        # In place of the last action the state carries the features of all neighbours; `act` picks one.
        return scores.log_softmax(-1), value, state._replace(action=neighbors)

    @staticmethod
    def act(state: DecoderState, actions: Tensor) -> DecoderState:
        """Return the state after choosing actions, int64 (B,)."""
        # -1, a teacher that knows nothing, is taken for "stop", whose features are zero.
        chosen = actions.clamp(min=0)[:, None, None].expand(-1, 1, state.action.shape[-1])
        return state._replace(action=state.action.gather(1, chosen).squeeze(1))
