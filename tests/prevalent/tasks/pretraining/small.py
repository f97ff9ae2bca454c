"""A small pretraining, and the same data as files."""

import dataclasses
import json
from pathlib import Path

from fq_toolkit.prevalent import (
    MiniWorld,
    Triplet,
    Vocabulary,
    collect_triplets,
    load_r2r,
    save_triplets,
)
from fq_toolkit.prevalent.tasks.pretraining.config import PretrainingConfig
from fq_toolkit.prevalent.tasks.pretraining.training import PretrainingTask, build_pretraining
from fq_toolkit.training.session import make_accelerator

SMALL = PretrainingConfig(
    scans=2, train_items=20, validation_items=6, hidden_size=16, num_heads=2, intermediate_size=32, steps=6,
    batch_size=8, log_every=2, checkpoint_every=3, evaluate_every=0, eval_steps=30, fine_tune=False,
    device="cpu", feature_dim=64, loss_weights=(1.0, 1.0),
)  # fmt: skip


LABELS = ("prevalent", "view36", "candidate")


def task(config: PretrainingConfig) -> PretrainingTask:
    return build_pretraining(config, make_accelerator(config))


def _inside(part: list[str], whole: list[str]) -> bool:
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


def real(folder: Path, **more: object) -> PretrainingConfig:
    """Write a world as real data comes and return options that read it."""
    world = MiniWorld(5, num_scans=3)
    world.to_connectivity_json(folder / "connectivity")
    world.features().save_npz(folder / "features.npz")
    records = world.annotations(40)
    train = records[:20]
    # Paths to measure with that are no part of a path to learn from: added data may not hold them.
    others = [r for r in records[20:] if not any(_inside(r["path"], seen["path"]) for seen in train)]
    splits = {"train": train, "val_seen": others[:5], "val_unseen": others[5:10]}
    for name, split in splits.items():
        (folder / f"R2R_{name}.json").write_text(json.dumps(split))
    given = {
        "data": str(folder),
        "connectivity": str(folder / "connectivity"),
        "features": str(folder / "features.npz"),
    }
    return dataclasses.replace(SMALL, **{**given, **more})


def write_triplets(folder: Path, config: PretrainingConfig) -> tuple[list[Triplet], list[Triplet]]:
    """Write triplets of the training and of the val_seen split, and their vocabulary."""
    from fq_toolkit.prevalent import NavWorld

    world = NavWorld.from_connectivity(str(config.connectivity))
    items = load_r2r(folder / "R2R_train.json")
    vocabulary = Vocabulary.train(item.instruction for item in items)
    vocabulary.save(folder / "vocabulary.json")
    real_ones = collect_triplets(world, items, vocabulary.encode)
    held_out = collect_triplets(world, load_r2r(folder / "R2R_val_seen.json"), vocabulary.encode)
    save_triplets(folder / "train.json", real_ones)
    save_triplets(folder / "held_out.json", held_out)
    return real_ones, held_out
