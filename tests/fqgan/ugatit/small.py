"""The smallest U-GAT-IT, and two domains of pictures for it."""

import dataclasses
from pathlib import Path

from fq_toolkit.fqgan.ugatit.config import preset
from tests.fqgan.data.image_data import write_image

TINY = dataclasses.replace(
    preset("u-gat-it-tiny"), steps=4, width=4, batch_size=2, num_codes=(4, 4), fq_warmup=3, lr_decay_start=1,
    lr_decay_end=5, log_every=1, checkpoint_every=2, evaluate_every=0, device="cpu",
)  # fmt: skip


def write_domains(folder: Path, **counts: int) -> Path:
    """Write random pictures, by default nine and seven to train on and four each to test on."""
    for part, count in ({"trainA": 9, "trainB": 7, "testA": 4, "testB": 4} | counts).items():
        for i in range(count):
            write_image(folder / part / f"{i}.png", (20, 18), "L", seed=i + 100 * (part[-1] == "B"))
    return folder
