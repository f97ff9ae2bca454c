"""Time steps of triplets as arrays, batches of them, and the words that are hidden in a batch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fq_toolkit.prevalent.data.triplets import Triplet
from fq_toolkit.prevalent.files import DataError
from fq_toolkit.prevalent.text.vocabulary import Vocabulary
from fq_toolkit.prevalent.world.angles import STEP, Layout, angle_features, view_angle_features
from fq_toolkit.prevalent.world.features import FeatureStore
from fq_toolkit.prevalent.world.tables import TableBuilder, WorldTables
from fq_toolkit.prevalent.world.world import NavWorld

ANGLE_DIM = 128
LAYOUT: Layout = "blocked"
REPLACED, RANDOM = 0.8, 0.1  # of the chosen words; the rest stays as it is


class StepBatch(NamedTuple):
    """Time steps of paths.

    ids: int64 (B, L), instructions, cut after the longest.
    views: float32 (B, 36, F), features and angles relative to the heading, in absolute order.
    actions: int64 (B,).
    candidates: float32 (B, A, F), stop (zeros) and the neighbours; None unless they are pointed at.
    candidate_mask: bool (B, A), True where there is one.
    """

    ids: Tensor
    views: Tensor
    actions: Tensor
    candidates: Tensor | None
    candidate_mask: Tensor | None

    def to(self, device: torch.device) -> "StepBatch":
        """Return the batch on a device."""
        ids, views, actions = (part.to(device) for part in self[:3])
        return StepBatch(
            ids,
            views,
            actions,
            None if self.candidates is None else self.candidates.to(device),
            None if self.candidate_mask is None else self.candidate_mask.to(device),
        )


class PretrainingSteps:
    """Every time step of some triplets, gathered from arrays when asked for.

    Args:
        triplets: at least one.
        features: of the viewpoints.
        world: the graphs, where candidates are pointed at; None for classes of actions.

    Raises:
        DataError: without triplets, or for a viewpoint without features, naming the triplet.

    Example:
        >>> from fq_toolkit.prevalent import MiniWorld, Vocabulary, collect_triplets
        >>> world = MiniWorld(0)
        >>> items = world.items(3)
        >>> vocabulary = Vocabulary.train(item.instruction for item in items)
        >>> steps = PretrainingSteps(collect_triplets(world, items, vocabulary.encode), world.features())
        >>> batch = steps.batch(torch.tensor([0, 4]))
        >>> batch.views.shape, len(steps) == sum(len(item.path) for item in items)
        (torch.Size([2, 36, 192]), True)
    """

    def __init__(
        self, triplets: Sequence[Triplet], features: FeatureStore, world: NavWorld | None = None
    ) -> None:
        if not triplets:
            raise DataError("there are no triplets to train on")
        self.features = features
        self.tokens = torch.tensor([triplet.tokens for triplet in triplets])
        self._lengths = (self.tokens != 0).sum(dim=1)  # padding is 0
        rows = []
        for triplet in triplets:
            try:
                rows.append(features.rows((pose.scan, pose.viewpoint) for pose in triplet.path))
            except DataError as error:
                raise DataError(f"triplet {triplet.instr_id!r}: {error}") from error
        # From here on a time step is a number: its instruction, features, view and action are looked up in
        # arrays, so that a batch is a few gathers and no loop.
        self._rows = np.concatenate(rows)
        features.check([features.keys[row] for row in np.unique(self._rows)])
        self._text = torch.repeat_interleave(
            torch.arange(len(triplets)), torch.tensor([len(triplet.path) for triplet in triplets])
        )
        self._view = np.array([pose.view for triplet in triplets for pose in triplet.path])
        self._actions = torch.tensor([action for triplet in triplets for action in triplet.actions])
        self._view_angles = view_angle_features(layout=LAYOUT, dim=ANGLE_DIM)
        self._tables: WorldTables | None = None
        if world is not None:
            builder = TableBuilder(world)
            builder.add({triplet.path[0].scan for triplet in triplets})
            self._tables = builder.build()
            number = {name: node for node, name in enumerate(builder.names)}
            self._nodes = np.array(
                [number[pose.scan, pose.viewpoint] for triplet in triplets for pose in triplet.path]
            )

    def __len__(self) -> int:
        return len(self._actions)

    def parts(self) -> list[Any]:
        """Return what tells these steps apart; of the features those of some places, see `fingerprint`."""
        # All features would be gigabytes; those of another network differ everywhere.
        some = np.unique(np.linspace(0, len(self._rows) - 1, 64, dtype=np.int64))
        return [
            self.tokens, self._text, self._view, self._actions, self._rows, self.features.keys,
            self.features.panorama(self._rows[some]),
            *(() if self._tables is None else self._tables),
        ]  # fmt: skip

    @property
    def vision_size(self) -> int:
        """Return the width of a view with its angles."""
        return self.features.dim + ANGLE_DIM

    def batch(self, index: Tensor) -> StepBatch:
        """Return some time steps, int64 (B,) of their numbers."""
        steps = index.numpy()
        text = self._text[index]
        # Cut after the longest instruction of the batch: attention is quadratic in the length.
        ids = self.tokens[text, : int(self._lengths[text].max())]
        heading = self._view[steps] % 12  # 12 headings, 3 elevations; directions are relative to the heading
        pictures = self.features.panorama(self._rows[steps])
        views = torch.from_numpy(np.concatenate([pictures, self._view_angles[heading]], axis=-1))
        candidates = mask = None
        if self._tables is not None:
            candidates, mask = self._candidates(self._tables, self._nodes[steps], heading, pictures)
        return StepBatch(ids, views, self._actions[index], candidates, mask)

    def _candidates(
        self, tables: WorldTables, nodes: np.ndarray, heading: np.ndarray, pictures: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Return the view and direction of each neighbour, (B, A, F), and which there are."""
        shown = tables.views[nodes]
        angles = angle_features(
            tables.headings[nodes] - heading[:, None] * STEP,
            tables.elevations[nodes],
            layout=LAYOUT,
            dim=ANGLE_DIM,
        )
        # Slot 0 is stopping and has no view (-1): clip finds any picture, and the mask below zeroes it.
        chosen = pictures[np.arange(len(nodes))[:, None], shown.clip(0)]
        rows = np.concatenate([chosen, angles], axis=-1) * (shown >= 0)[..., None]
        mask = np.arange(shown.shape[1]) < tables.actions[nodes][:, None]
        return torch.from_numpy(rows.astype(np.float32)), torch.from_numpy(mask)


class WordMasker:
    """Chooses words to be guessed: 80 % become ``[MASK]``, 10 % another word, 10 % stay; fresh at each call.

    Special tokens are never chosen, and never stand in for a word.

    Args:
        vocabulary: the words.
        share: of the words that are chosen, each on its own.

    Raises:
        DataError: for a vocabulary with nothing but special tokens.

    Example:
        >>> vocabulary = Vocabulary.train(["turn left at the sofa"])
        >>> masker = WordMasker(vocabulary, share=1.0)
        >>> ids, labels = masker(torch.tensor([vocabulary.encode("turn left", length=6)]))
        >>> labels.tolist() == [[-1, *vocabulary.pieces("turn left"), -1, -1, -1]]
        True

    Source: BERT, arXiv 1810.04805, section 3.1.
    """

    def __init__(self, vocabulary: Vocabulary, *, share: float = 0.15) -> None:
        special = vocabulary.special_ids
        words = [number for number in range(len(vocabulary)) if number not in special]
        if not words:
            raise DataError("the vocabulary has no words, only special tokens: are all instructions empty?")
        self.share, self.mask = share, vocabulary.mask
        self._words = torch.tensor(words)
        self._special = torch.zeros(len(vocabulary), dtype=torch.bool)
        self._special[list(special)] = True

    def __call__(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Hide words of instructions.

        Args:
            ids: int64 (B, L), on the CPU; drawn with torch's global generator.

        Returns:
            The ids with words hidden, and labels: the word where it was chosen, -1 elsewhere.
        """
        chosen = (torch.rand(ids.shape) < self.share) & ~self._special[ids]
        # All three draws have the shape of the batch, so the random stream does not depend on what is chosen.
        fate = torch.rand(ids.shape)
        others = self._words[torch.randint(len(self._words), ids.shape)]
        hidden = torch.where(chosen & (fate < REPLACED), self.mask, ids)
        hidden = torch.where(chosen & (fate >= REPLACED) & (fate < REPLACED + RANDOM), others, hidden)
        return hidden, torch.where(chosen, ids, -1)
