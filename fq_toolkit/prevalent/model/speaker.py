"""Speaker: looks at a path and says how to follow it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fq_toolkit.prevalent.files import DataError, check_readable, read_json
from fq_toolkit.prevalent.model.follower import attend
from fq_toolkit.prevalent.text.vocabulary import VOCABULARY, Vocabulary
from fq_toolkit.prevalent.world.env import BatchedNavEnv
from fq_toolkit.prevalent.world.items import NavItem
from fq_toolkit.prevalent.world.path_views import PathViews, observe_paths
from fq_toolkit.training.storage.atomic import write_atomic

MOST_STEPS = 100
"""Steps of the longest path that can be described."""


class Speaker(nn.Module):
    """The model that writes instructions for paths.

    A BiLSTM reads the features of the neighbours that the path goes to; each of its states attends over the
    36 views seen there; a second BiLSTM reads what was found. A LSTM decoder with attention over the steps
    says one word after another. Beside the second BiLSTM each step keeps a direct view of where it goes, and
    its number: from a few hundred instructions the words for things are hardly learned without.

    Args:
        vocabulary: the words it may say.
        feature_dim: width of a view feature without its angles.
        angle_dim: width of the angle features.
        hidden_size: of encoder states and decoder, even.
        word_size: of word embeddings.
        dropout: of states and words.

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
        """Return where the weights are."""
        return self.project.weight.device

    def see(self, paths: PathViews) -> Tensor:
        """Return the context (B, T, H) of the steps of paths.

        Raises:
            ValueError: for more than 100 steps.
        """
        moved = self._read(self.moves, self.dropout(paths.chosen), paths.mask)
        batch, steps = paths.mask.shape
        if steps > MOST_STEPS:
            raise ValueError(f"a path has {steps} steps; the speaker describes at most {MOST_STEPS}")
        query = self.view_query(self.dropout(moved)).flatten(0, 1)
        seen = attend(query, paths.views.flatten(0, 1)).view(batch, steps, -1)
        merged = torch.tanh(self.merge_views(torch.cat([moved, seen], dim=-1)))
        read = self.dropout(self._read(self.steps, self.dropout(merged), paths.mask))
        return read + self.direct(paths.chosen) + self.number.weight[:steps]

    @staticmethod
    def _read(layer: nn.LSTM, inputs: Tensor, mask: Tensor) -> Tensor:
        """Return the states of a BiLSTM over rows of different length, zeros behind their ends."""
        packed = nn.utils.rnn.pack_padded_sequence(
            inputs, mask.sum(dim=1).cpu(), batch_first=True, enforce_sorted=False
        )
        states, _ = layer(packed)
        return nn.utils.rnn.pad_packed_sequence(states, batch_first=True, total_length=mask.shape[1])[0]

    def _say(
        self, words: Tensor, context: Tensor, mask: Tensor, state: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return scores (B, L, V) of the next words, and the state behind the given ones (B, L)."""
        hidden, state = self.decoder(self.dropout(self.words(words)), state)
        scores = torch.einsum("blh,bth->blt", self.step_query(hidden), context) / hidden.shape[-1] ** 0.5
        weights = scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1)
        found = torch.einsum("blt,bth->blh", weights, context)
        merged = torch.tanh(self.merge_steps(torch.cat([found, hidden], dim=-1)))
        return self.project(self.dropout(merged)), state

    def forward(self, paths: PathViews, tokens: Tensor) -> Tensor:
        """Return the scores of each next word when the words before it are given (teacher forcing).

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
            0-dim.
        """
        wanted = tokens[:, 1:].flatten()
        return F.cross_entropy(scores.flatten(0, 1).float(), wanted, ignore_index=self.vocabulary.pad)

    def encode(self, instructions: Sequence[str]) -> Tensor:
        """Return token numbers (B, L) of instructions, padded to the longest of them."""
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
        """Say an instruction for each path; the mode (dropout or not) is left as it is.

        It ends surely: at ``[SEP]``, or after ``max_words``. ``[PAD]``, ``[UNK]`` and other special tokens
        are never said, and at least one word is.

        Args:
            paths: B paths.
            sample: draw words from their distribution; the likeliest by default.
            max_words: of an instruction.
            generator: of the draws, on the CPU.

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
            if number == 0:
                scores[:, vocabulary.sep] = -torch.inf
            if sample:
                below = scores.double().softmax(-1).cumsum(-1)
                drawn = torch.rand(count, 1, generator=generator).double().to(self.device)
                # Words that cannot be said have no width, so no draw in [0, 1) falls on them.
                word = torch.searchsorted(below, drawn * below[:, -1:], right=True)[:, 0]
                word = word.clamp(max=len(vocabulary) - 1)
            else:
                word = scores.argmax(-1)
            word = torch.where(ended, vocabulary.pad, word)
            said.append(word)
            ended = ended | (word == vocabulary.sep)
            if bool(ended.all()):
                break
            words = word[:, None]
        return [vocabulary.decode(row) for row in torch.stack(said, dim=1).tolist()]

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write settings, vocabulary and weights.

        Returns:
            The folder.

        Raises:
            RunError: when it cannot be written.
        """
        from safetensors.torch import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.vocabulary.save(folder / VOCABULARY)
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        write_atomic(folder / "speaker.safetensors", save(tensors))
        write_atomic(folder / "speaker.json", (json.dumps(self.settings, indent=2) + "\n").encode())
        return folder

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Speaker":
        """Read what `save_pretrained` wrote; a run folder of ``train speaker`` works too.

        Raises:
            DataError: naming the file that is missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        folder = Path(folder)
        if (folder / "speaker").is_dir():
            folder = folder / "speaker"
        settings: Any = read_json(folder / "speaker.json")
        weights = folder / "speaker.safetensors"
        check_readable(weights)
        try:
            speaker = cls(Vocabulary.from_file(folder / VOCABULARY), **settings)
            speaker.load_state_dict(load(weights.read_bytes()))
        except (TypeError, ValueError, RuntimeError, SafetensorError) as error:
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
    """Return items with instructions that a speaker says for their paths: one step of back-translation.

    The agent that is trained on them must see the world through the same ``feature_mask``: speaker and agent
    then agree on one building, which is another one than the features show.

    Args:
        speaker: its mode (dropout or not) is left as it is.
        env: gives tensors on the speaker's device, with features.
        items: paths; their own instructions are not read.
        feature_mask: (D,) of environment dropout.
        sample: draw words; the likeliest by default.
        generator: of the draws, on the CPU.

    Source: R2R-EnvDrop, arXiv 1904.04195, section 3.4.
    """
    paths = observe_paths(env, items, feature_mask=feature_mask)
    said = speaker.speak(paths, sample=sample, generator=generator)
    return [item._replace(instruction=text) for item, text in zip(items, said, strict=True)]
