"""How good a speaker is: BLEU against all instructions that people gave for a path."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fq_toolkit.prevalent.data.splits import Split
from fq_toolkit.prevalent.model.speaker import Speaker, retell
from fq_toolkit.training.errors import require


class Told(NamedTuple):
    """A path, what the speaker says, and what people said."""

    instr_id: str
    said: str
    references: tuple[str, ...]


class SpeakerEvaluation(NamedTuple):
    """BLEU by split, 0 to 100, of the step that was kept.

    bleu: split -> BLEU-4.
    counts: split -> paths.
    selected_by: the split whose BLEU chose the step; empty where a user did.
    kept_step: updates after which the kept weights were taken.
    synthesised: whether the features are noise.
    """

    bleu: Mapping[str, float]
    counts: Mapping[str, int]
    selected_by: str
    kept_step: int
    synthesised: bool

    def __str__(self) -> str:
        parts = [f"{name} BLEU {score:.1f} ({self.counts[name]} paths)" for name, score in self.bleu.items()]
        chosen = f", chosen by {self.selected_by}" if self.selected_by else ""
        text = f"{', '.join(parts)}; step {self.kept_step}{chosen}"
        note = "\nfeatures synthesised: these figures say nothing about vision" if self.synthesised else ""
        return text + note


def tell(speaker: Speaker, split: Split, *, batch_size: int = 64) -> list[Told]:
    """Let a speaker describe each path of a split once; training mode stays as it was."""
    references: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    firsts = []
    for item in split.items:
        key = (item.scan, item.path)  # all instructions of one path are references of one description
        if key not in references:
            firsts.append(item)
        references.setdefault(key, []).append(item.instruction)
    env, was_training = split.env(speaker.device), speaker.training
    speaker.eval()
    try:
        said = [
            item.instruction
            for start in range(0, len(firsts), batch_size)
            for item in retell(speaker, env, firsts[start : start + batch_size])
        ]
    finally:
        speaker.train(was_training)
    return [
        Told(item.instr_id, text, tuple(references[item.scan, item.path]))
        for item, text in zip(firsts, said, strict=True)
    ]


def bleu(told: Sequence[Told]) -> float:
    """Return corpus BLEU-4 without regard to case, 0 to 100.

    Args:
        told: at least one.

    Raises:
        MissingExtraError: without sacrebleu.

    Example:
        >>> round(bleu([Told("7_0", "turn left at the sofa", ("Turn left at the sofa", "go left"))]), 3)
        100.0
    """
    sacrebleu = require("sacrebleu", purpose="measuring a speaker")
    most = max(len(entry.references) for entry in told)
    columns = [
        [entry.references[i] if i < len(entry.references) else None for entry in told] for i in range(most)
    ]
    # force: instructions end in " .", which sacrebleu would otherwise warn of as tokenized text.
    return float(sacrebleu.corpus_bleu([e.said for e in told], columns, lowercase=True, force=True).score)
