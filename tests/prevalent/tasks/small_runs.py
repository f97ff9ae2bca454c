"""Small runs of speaker, NDH and HANNA."""

from typing import Any

import torch

from fq_toolkit.prevalent.tasks.hanna.config import HannaConfig
from fq_toolkit.prevalent.tasks.hanna.training import HANNA_TRAINER
from fq_toolkit.prevalent.tasks.ndh.config import NDHConfig
from fq_toolkit.prevalent.tasks.ndh.training import NDH_TRAINER
from fq_toolkit.prevalent.tasks.speaker.config import SpeakerConfig
from fq_toolkit.prevalent.tasks.speaker.training import SPEAKER_TRAINER

SMALL: dict[str, Any] = {
    "scans": 1, "train_items": 8, "validation_items": 4, "steps": 4, "batch_size": 4, "log_every": 1,
    "checkpoint_every": 2, "evaluate_every": 2, "hidden_size": 16, "device": "cpu",
}  # fmt: skip


WALKS = {**SMALL, "max_steps": 4}


RUNS = {
    "speaker": (SPEAKER_TRAINER, SpeakerConfig(**SMALL, word_size=8)),
    "ndh": (NDH_TRAINER, NDHConfig(**WALKS)),
    "hanna": (HANNA_TRAINER, HannaConfig(**WALKS)),
}


def same(a: Any, b: Any) -> bool:
    """Return whether two states are equal bit by bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a if key != "seconds")
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)
