"""What pretraining trains and validates on: generated worlds, real annotations, or files of triplets."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fq_toolkit.prevalent.annotations import load_r2r
from fq_toolkit.prevalent.feature_sources import SYNTHETIC, open_features
from fq_toolkit.prevalent.features import FeatureStore
from fq_toolkit.prevalent.files import DataError, read_records
from fq_toolkit.prevalent.items import NavItem, check_disjoint
from fq_toolkit.prevalent.miniworld import MiniWorld
from fq_toolkit.prevalent.pretraining_config import MINIWORLD, UNSEEN, PretrainingConfig
from fq_toolkit.prevalent.pretraining_steps import PretrainingSteps
from fq_toolkit.prevalent.triplets import TOKENS, Triplet, collect_triplets, load_triplets
from fq_toolkit.prevalent.vocabulary import Vocabulary
from fq_toolkit.prevalent.world import NavWorld


class PretrainingData(NamedTuple):
    """Everything a run reads.

    vocabulary: of the instructions.
    train: time steps, the annotated before the synthesised ones.
    validation: time steps of held-out paths.
    synthesised: how many of ``train`` are synthesised.
    cut: instructions to train on that were longer than 80 tokens and lost their end. Triplets from a file
        were cut, if at all, when the file was made, and are not counted.
    held_out_cut: the same of the held-out instructions.
    features_synthesised: whether the features are noise, which every figure must say.
    description: one line.
    """

    vocabulary: Vocabulary
    train: PretrainingSteps
    validation: PretrainingSteps
    synthesised: int
    cut: int
    held_out_cut: int
    features_synthesised: bool
    description: str


class _Source(NamedTuple):
    """Where instructions and paths come from; annotations or triplets, for training and validation."""

    world: NavWorld
    features: FeatureStore
    train: Sequence[NavItem] | Sequence[Triplet]
    validation_world: NavWorld
    validation_features: FeatureStore
    validation: Sequence[NavItem] | Sequence[Triplet]
    held_out: list[NavItem]  # of every validation split, also those that are not measured on


def load_pretraining_data(config: PretrainingConfig) -> PretrainingData:
    """Load or generate the training and the validation steps.

    Raises:
        DataError: naming file and item, for damaged files, missing features or viewpoints, or a validation
            path in what is trained on.
        ConfigError: for sources that do not fit each other.
    """
    if config.data == MINIWORLD:
        source = _mini(config)
    elif config.data.endswith(".json"):
        source = _triplet_files(config)
    else:
        source = _annotations(config)
    more = _augmented(config, source)
    vocabulary = _vocabulary(config, [*source.train, *more])
    too_long: set[tuple[str, tuple[int, ...]]] = set()  # names alone may recur in another file

    def triplets(found: Iterable[NavItem | Triplet], world: NavWorld) -> list[Triplet]:
        found = list(found)
        items = [entry for entry in found if isinstance(entry, NavItem)]
        made = collect_triplets(world, items, vocabulary.encode, kind=config.action_label)
        for item, triplet in zip(items, made, strict=True):
            if triplet.tokens[-1] and len(vocabulary.pieces(item.instruction)) > TOKENS - 2:
                too_long.add((triplet.instr_id, triplet.tokens))
        return check_tokens([entry for entry in found if isinstance(entry, Triplet)] + made, vocabulary)

    real, synthesised = triplets(source.train, source.world), triplets(more, source.world)
    if config.synthesised_share is not None:
        real, synthesised = mix(real, synthesised, config.synthesised_share, seed=config.seed)
    points = config.action_label == "candidate"
    train = PretrainingSteps([*real, *synthesised], source.features, source.world if points else None)
    held_out = triplets(source.validation, source.validation_world)
    validation = PretrainingSteps(
        held_out,
        source.validation_features,
        source.validation_world if points else None,
    )
    added = sum(len(triplet.path) for triplet in synthesised)
    share = f", {100 * added / len(train):.1f} % synthesised" if added else ""
    cut, held_out_cut = (
        sum((triplet.instr_id, triplet.tokens) in too_long for triplet in part)
        for part in ([*real, *synthesised], held_out)
    )
    lost = f", cut to {TOKENS} tokens: {cut} instructions, {held_out_cut} held out" if too_long else ""
    noise = config.data != MINIWORLD and config.features == SYNTHETIC
    description = (
        f"{config.data}: {len(train)} steps of {len(real) + len(synthesised)} instructions{share}, "
        f"{len(validation)} held out, {len(vocabulary)} words{lost}"
        + (", features synthesised (noise, no images)" if noise else "")
    )
    return PretrainingData(vocabulary, train, validation, added, cut, held_out_cut, noise, description)


def as_items(found: Sequence[NavItem] | Sequence[Triplet]) -> list[NavItem]:
    """Return annotations as they are, and triplets as items of the same path, for `check_disjoint`."""
    return [
        entry
        if isinstance(entry, NavItem)
        else NavItem(
            entry.instr_id, entry.path[0].scan, 0.0, tuple(pose.viewpoint for pose in entry.path), (), ""
        )
        for entry in found
    ]


def check_tokens(triplets: list[Triplet], vocabulary: Vocabulary) -> list[Triplet]:
    """Return the triplets, after checking that the vocabulary has their tokens.

    Raises:
        DataError: naming the triplet.
    """
    for triplet in triplets:
        if max(triplet.tokens) >= len(vocabulary) or min(triplet.tokens) < 0:
            raise DataError(
                f"triplet {triplet.instr_id!r} has token {max(triplet.tokens)}, but the vocabulary has "
                f"{len(vocabulary)}: give the vocabulary that the triplets were encoded with"
            )
    return triplets


def mix(
    real: list[Triplet], synthesised: list[Triplet], share: float, *, seed: int
) -> tuple[list[Triplet], list[Triplet]]:
    """Drop triplets, by draw, of the kind that is too many, so that its share becomes what was asked for.

    Args:
        real: annotated triplets.
        synthesised: written by a speaker.
        share: of the synthesised among all, by number of triplets.
        seed: of the draw.

    Raises:
        DataError: when one of the kinds is empty or would be dropped altogether.
    """
    most_synthesised = round(len(real) * share / (1 - share))
    most_real = round(len(synthesised) * (1 - share) / share)
    if not min(len(real), len(synthesised), most_synthesised, most_real):
        raise DataError(
            f"{len(real)} annotated and {len(synthesised)} synthesised triplets cannot be mixed with a share "
            f"of {share:g} synthesised"
        )
    generator = np.random.default_rng(seed)

    def draw(triplets: list[Triplet], count: int) -> list[Triplet]:
        if count >= len(triplets):
            return triplets
        return [triplets[i] for i in np.sort(generator.permutation(len(triplets))[:count])]

    return draw(real, most_real), draw(synthesised, most_synthesised)


def mini_worlds(config: PretrainingConfig) -> tuple[MiniWorld, MiniWorld]:
    """Return the generated worlds to train in, and unseen ones."""
    return (
        MiniWorld(config.world_seed, num_scans=config.scans, feature_dim=config.feature_dim),
        MiniWorld(
            config.world_seed + UNSEEN, num_scans=max(2, config.scans // 4), feature_dim=config.feature_dim
        ),
    )


def _mini(config: PretrainingConfig) -> _Source:
    seen, unseen = mini_worlds(config)
    items = seen.items(config.train_items, seed=11)
    held_out = unseen.items(config.validation_items, seed=12)
    return _Source(seen, seen.features(), items, unseen, unseen.features(), held_out, held_out)


def _graphs(config: PretrainingConfig) -> tuple[NavWorld, FeatureStore]:
    world = NavWorld.from_connectivity(str(config.connectivity))
    return world, open_features(config.features, world, dim=config.feature_dim)


def _annotations(config: PretrainingConfig) -> _Source:
    world, features = _graphs(config)
    folder = Path(config.data)
    found = {
        name: load_r2r(folder / f"R2R_{name}.json", world=world)
        for name in ("val_unseen", "val_seen")
        if (folder / f"R2R_{name}.json").exists()
    }
    if not found:
        raise DataError(f"{folder} has neither R2R_val_unseen.json nor R2R_val_seen.json to validate on")
    held_out = [item for items in found.values() for item in items]
    items = load_r2r(folder / "R2R_train.json", world=world, held_out=held_out)
    return _Source(world, features, items, world, features, next(iter(found.values())), held_out)


def _triplet_files(config: PretrainingConfig) -> _Source:
    world, features = _graphs(config)
    validation = load_triplets(str(config.validation))
    held_out = as_items(validation)
    triplets = load_triplets(config.data, held_out=held_out)
    return _Source(world, features, triplets, world, features, validation, held_out)


def _augmented(config: PretrainingConfig, source: _Source) -> Sequence[NavItem] | Sequence[Triplet]:
    """Return the synthesised instructions, none of whose paths is held out."""
    if config.augmented is None:
        return []
    records = read_records(Path(config.augmented))
    if records and "teacher_actions" in records[0]:
        return load_triplets(config.augmented, held_out=source.held_out)
    items = load_r2r(config.augmented, world=source.world)
    check_disjoint(items, source.held_out, source=config.augmented)
    return items


def _vocabulary(config: PretrainingConfig, found: Iterable[NavItem | Triplet]) -> Vocabulary:
    """Return the vocabulary that is given, or the words of the training instructions."""
    if config.vocabulary is not None:
        return Vocabulary.from_file(config.vocabulary)
    texts = []
    for entry in found:
        if isinstance(entry, Triplet):
            raise DataError(
                f"triplet {entry.instr_id!r} holds token ids, which mean nothing without the vocabulary they "
                "were encoded with: give vocabulary"
            )
        texts.append(entry.instruction)
    return Vocabulary.train(texts)
