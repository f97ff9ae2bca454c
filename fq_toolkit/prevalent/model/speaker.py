"""Speaker: a model that writes instructions for paths."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fq_toolkit.prevalent.files import DataError, check_readable, make_folder, read_json, write_json
from fq_toolkit.prevalent.model.follower import attend
from fq_toolkit.prevalent.model.weight_files import read_weights, write_weights
from fq_toolkit.prevalent.text.vocabulary import VOCABULARY, Vocabulary
from fq_toolkit.prevalent.world.env import BatchedNavEnv
from fq_toolkit.prevalent.world.items import NavItem
from fq_toolkit.prevalent.world.path_views import PathViews, observe_paths

MOST_STEPS = 100
"""Length of the longest path that can be described, in steps."""


class Speaker(nn.Module):
    """The model that writes instructions for paths.

    A BiLSTM reads the features of the neighbours that the path moves to; each of its states attends over the
    36 views of its step; a second BiLSTM reads the result. An LSTM decoder with attention over the steps
    writes one word after another::

        P(instruction | path) = product over t of P(word t | words before t, path)

    In addition to the second BiLSTM, each step keeps a direct view of where it goes, and its number. Without
    them, a few hundred instructions hardly teach the words for objects.

    Args:
        vocabulary: the words that it may use.
        feature_dim: width of a view feature without its angles.
        angle_dim: width of the angle features.
        hidden_size: width of the encoder states and of the decoder; even.
        word_size: width of the word embeddings.
        dropout: dropout of states and words.

    Raises:
        ValueError: for an odd hidden size.

    Source: speaker-follower, arXiv 1806.02724, section 3.1; R2R-EnvDrop, arXiv 1904.04195, section 3.4.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        feature_dim: int,
        angle_dim: int = 128,
        hidden_size: int = 128,
        word_size: int = 64,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        if hidden_size < 2 or hidden_size % 2:
            raise ValueError(f"hidden_size must be even and at least 2, got {hidden_size}")
        self.vocabulary, self.feature_dim, self.angle_dim = vocabulary, feature_dim, angle_dim
        self.settings = {
            "feature_dim": feature_dim,
            "angle_dim": angle_dim,
            "hidden_size": hidden_size,
            "word_size": word_size,
            "dropout": dropout,
        }
        width, half = feature_dim + angle_dim, hidden_size // 2
        self.moves = nn.LSTM(width, half, bidirectional=True, batch_first=True)
        self.view_query = nn.Linear(hidden_size, width, bias=False)
        self.merge_views = nn.Linear(hidden_size + width, hidden_size)
        self.direct = nn.Linear(width, hidden_size)
        self.number = nn.Embedding(MOST_STEPS, hidden_size)
        self.steps = nn.LSTM(hidden_size, half, bidirectional=True, batch_first=True)
        self.words = nn.Embedding(len(vocabulary), word_size, padding_idx=vocabulary.pad)
        self.decoder = nn.LSTM(word_size, hidden_size, batch_first=True)
        self.step_query = nn.Linear(hidden_size, hidden_size, bias=False)
        self.merge_steps = nn.Linear(2 * hidden_size, hidden_size)
        self.project = nn.Linear(hidden_size, len(vocabulary))
        self.dropout = nn.Dropout(dropout)

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return self.project.weight.device

    def see(self, paths: PathViews) -> Tensor:
        """Encode paths: one context vector per step, (B, T, H).

        Raises:
            ValueError: for more than 100 steps.
        """
        moved = self._read(self.moves, self.dropout(paths.chosen), paths.mask)
        batch, steps = paths.mask.shape
        if steps > MOST_STEPS:
            raise ValueError(f"a path has {steps} steps; the speaker describes at most {MOST_STEPS}")
        # Steps of all paths are one batch for the attention over their own 36 views.
        query = self.view_query(self.dropout(moved)).flatten(0, 1)
        seen = attend(query, paths.views.flatten(0, 1)).view(batch, steps, -1)
        merged = torch.tanh(self.merge_views(torch.cat([moved, seen], dim=-1)))
        read = self.dropout(self._read(self.steps, self.dropout(merged), paths.mask))
        return read + self.direct(paths.chosen) + self.number.weight[:steps]

    @staticmethod
    def _read(layer: nn.LSTM, inputs: Tensor, mask: Tensor) -> Tensor:
        """Run a BiLSTM over rows of different length; the states behind their ends are zero."""
        # Packed, or the backward direction would start in the padding of the shorter rows.
        packed = nn.utils.rnn.pack_padded_sequence(
            inputs, mask.sum(dim=1).cpu(), batch_first=True, enforce_sorted=False
        )
        states, _ = layer(packed)
        return nn.utils.rnn.pad_packed_sequence(states, batch_first=True, total_length=mask.shape[1])[0]

    def _say(
        self, words: Tensor, context: Tensor, mask: Tensor, state: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return scores (B, L, V) of the next words, and the decoder's state after the given ones (B, L)."""
        hidden, state = self.decoder(self.dropout(self.words(words)), state)
        scores = torch.einsum("blh,bth->blt", self.step_query(hidden), context) / hidden.shape[-1] ** 0.5
        # Padding of shorter paths gets no weight.
        weights = scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1)
        attended = torch.einsum("blt,bth->blh", weights, context)
        merged = torch.tanh(self.merge_steps(torch.cat([attended, hidden], dim=-1)))
        return self.project(self.dropout(merged)), state

    def forward(self, paths: PathViews, tokens: Tensor) -> Tensor:
        """Score each next word given the words before it (teacher forcing).

        Args:
            paths: B paths.
            tokens: int64 (B, L), ``[CLS] words [SEP]``, padded.

        Returns:
            (B, L - 1, V); position t scores token t + 1.
        """
        return self._say(tokens[:, :-1], self.see(paths), paths.mask, None)[0]

    def loss(self, scores: Tensor, tokens: Tensor) -> Tensor:
        """Return the mean cross-entropy of the words of instructions, ``[SEP]`` included.

        Args:
            scores: (B, L - 1, V), as `forward` returns them.
            tokens: int64 (B, L).

        Returns:
            The loss, 0-dim.
        """
        wanted = tokens[:, 1:].flatten()  # each position scores the token behind it
        return F.cross_entropy(scores.flatten(0, 1).float(), wanted, ignore_index=self.vocabulary.pad)

    def encode(self, instructions: Sequence[str]) -> Tensor:
        """Return the token numbers (B, L) of instructions, padded to the longest of them."""
        rows = self.vocabulary.frame([self.vocabulary.pieces(text) for text in instructions])
        return torch.tensor(rows).to(self.device)

    @torch.no_grad()
    def speak(
        self,
        paths: PathViews,
        *,
        sample: bool = False,
        max_words: int = 78,
        generator: torch.Generator | None = None,
    ) -> list[str]:
        """Write an instruction for each path; the mode (dropout or not) is left as it is.

        An instruction ends at ``[SEP]`` or after ``max_words``. It has at least one word and never contains
        ``[PAD]``, ``[UNK]`` or another special token.

        Args:
            paths: B paths.
            sample: whether words are drawn from their distribution; by default the likeliest is taken.
            max_words: largest number of words of an instruction.
            generator: random source of the draws, on the CPU.

        Raises:
            ValueError: for fewer than one word.
        """
        if max_words < 1:
            raise ValueError(f"max_words must be at least 1, got {max_words}")
        vocabulary, count = self.vocabulary, len(paths.mask)
        never = torch.tensor(sorted(vocabulary.special_ids - {vocabulary.sep}), device=self.device)
        context = self.see(paths)
        words = torch.full((count, 1), vocabulary.cls, device=self.device)
        ended = torch.zeros(count, dtype=torch.bool, device=self.device)
        state, said = None, []
        for number in range(max_words):
            scores, state = self._say(words, context, paths.mask, state)
            scores = scores[:, 0].index_fill(1, never, -torch.inf)
            if number == 0:  # an empty instruction is none
                scores[:, vocabulary.sep] = -torch.inf
            if sample:
                # Inverting the distribution function takes one number per row, drawn on the CPU, so that all
                # devices write the same instructions.
                below = scores.double().softmax(-1).cumsum(-1)
                drawn = torch.rand(count, 1, generator=generator).double().to(self.device)
                # Words that cannot be said have no width, so no draw in [0, 1) falls on them.
                word = torch.searchsorted(below, drawn * below[:, -1:], right=True)[:, 0]
                word = word.clamp(max=len(vocabulary) - 1)
            else:
                word = scores.argmax(-1)
            # Ended instructions go on as padding until the last one has ended.
            word = torch.where(ended, vocabulary.pad, word)
            said.append(word)
            ended = ended | (word == vocabulary.sep)
            if bool(ended.all()):  # one look at the device per word, not per training step
                break
            words = word[:, None]
        return [vocabulary.decode(row) for row in torch.stack(said, dim=1).tolist()]

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write settings, vocabulary and weights into a folder.

        Returns:
            The folder.

        Raises:
            RunError: if something cannot be written.
        """
        folder = make_folder(folder)
        self.vocabulary.save(folder / VOCABULARY)
        write_weights(folder / "speaker.safetensors", self)
        write_json(folder / "speaker.json", self.settings, indent=2)
        return folder

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Speaker":
        """Read a folder of `save_pretrained`, or the run folder of ``train speaker``.

        Raises:
            DataError: naming the file that is missing or damaged.
        """
        folder = Path(folder)
        if (folder / "speaker").is_dir():
            folder = folder / "speaker"
        settings: Any = read_json(folder / "speaker.json")
        weights = folder / "speaker.safetensors"
        check_readable(weights)
        try:
            speaker = cls(Vocabulary.from_file(folder / VOCABULARY), **settings)
            speaker.load_state_dict(read_weights(weights, speaker))
        except (TypeError, ValueError, RuntimeError) as error:  # settings of other names, types or sizes
            raise DataError(f"{folder} holds no speaker of this version: {error}") from error
        return speaker.eval()


def retell(
    speaker: Speaker,
    env: BatchedNavEnv,
    items: Sequence[NavItem],
    *,
    feature_mask: Tensor | None = None,
    sample: bool = False,
    generator: torch.Generator | None = None,
) -> list[NavItem]:
    """Replace the instructions of items by those of a speaker: one step of back-translation.

    The agent trained on the result must see the world through the same ``feature_mask``, so that speaker and
    agent share one building, which differs from the one that the features show.

    Args:
        speaker: the speaker; its mode (dropout or not) is left as it is.
        env: an environment that returns tensors on the speaker's device, with features.
        items: items with paths; their own instructions are not read.
        feature_mask: (D,), mask of environment dropout.
        sample: whether words are drawn; by default the likeliest is taken.
        generator: random source of the draws, on the CPU.

    Source: R2R-EnvDrop, arXiv 1904.04195, section 3.4.
    """
    paths = observe_paths(env, items, feature_mask=feature_mask)
    said = speaker.speak(paths, sample=sample, generator=generator)
    return [item._replace(instruction=text) for item, text in zip(items, said, strict=True)]
