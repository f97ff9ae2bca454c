"""What pretraining trains and validates on: generated worlds, real annotations, or files of triplets."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fq_toolkit.prevalent.data.annotations import load_r2r
from fq_toolkit.prevalent.data.leak_guard import check_disjoint
from fq_toolkit.prevalent.data.splits import UNSEEN, fingerprint
from fq_toolkit.prevalent.data.triplet_files import FittedTriplets, fit_triplets, read_triplet_files
from fq_toolkit.prevalent.data.triplets import (
    TOKENS,
    ActionLabel,
    Triplet,
    action_label,
    collect_triplets,
    triplet_item,
)
from fq_toolkit.prevalent.files import DataError, read_records
from fq_toolkit.prevalent.miniworld.world import MiniWorld
from fq_toolkit.prevalent.tasks.pretraining.config import PretrainingConfig
from fq_toolkit.prevalent.tasks.pretraining.steps import PretrainingSteps
from fq_toolkit.prevalent.text.length_limit import fit_items
from fq_toolkit.prevalent.text.vocabulary import Vocabulary
from fq_toolkit.prevalent.world.angles import VIEWS
from fq_toolkit.prevalent.world.features import SYNTHETIC, FeatureStore, open_features
from fq_toolkit.prevalent.world.items import NavItem
from fq_toolkit.prevalent.world.world import NavWorld
from fq_toolkit.training.storage.measured_data import MeasuredSet


class PretrainingData(NamedTuple):
    """Everything a run reads.

    vocabulary: of the instructions.
    train: time steps, the annotated before the synthesised ones.
    validation: time steps of held-out paths.
    synthesised: how many of ``train`` are synthesised.
    cut: instructions to train on that were longer than the limit and lost their end; counted when read,
        before ``synthesised_share`` leaves any out.
    held_out_cut: the same of the held-out instructions.
    full: instructions of triplet files that fill all 80 places: perhaps cut when the file was made.
    features_synthesised: whether the features are noise, which every figure must say.
    description: one line.
    validation_name: file or world that the held-out paths are of.
    """

    vocabulary: Vocabulary
    train: PretrainingSteps
    validation: PretrainingSteps
    synthesised: int
    cut: int
    held_out_cut: int
    full: int
    features_synthesised: bool
    description: str
    validation_name: str

    def fingerprint(self) -> str:
        """Return a digest of what is trained on."""
        return fingerprint([self.vocabulary.tokens, *self.train.parts()])

    def measured_on(self) -> dict[str, MeasuredSet]:
        """Return the held-out instructions."""
        held_out = self.validation
        return {
            "held out": MeasuredSet(self.validation_name, fingerprint(held_out.parts()), len(held_out.tokens))
        }


# File, or name of a world -> what it holds.
_Entries = Mapping[str, Sequence[NavItem] | Sequence[Triplet]]


class _Source(NamedTuple):
    """Annotations or triplets for training and validation, with their graphs and features."""

    world: NavWorld
    features: FeatureStore
    train: _Entries
    validation_world: NavWorld
    validation_features: FeatureStore
    validation_name: str
    validation: _Entries
    held_out: list[NavItem]  # of every validation split, also those that are not measured on


def load_pretraining_data(config: PretrainingConfig) -> PretrainingData:
    """Load or generate the training and the validation steps.

    Raises:
        DataError: naming file and item, for damaged files, missing features or viewpoints, instructions over
            the limit, or a validation path in what is trained on.
        ConfigError: for sources that do not fit each other.
    """
    if config.generated:
        source = _mini(config)
    elif config.triplet_sources:
        source = _triplet_files(config)
    else:
        source = _annotations(config)
    more = _augmented(config, source)
    vocabulary = _vocabulary(
        config, [entry for part in (source.train, more) for entries in part.values() for entry in entries]
    )
    annotated = _triplets(config, vocabulary, source.train, source.world)
    extra = FittedTriplets([], 0, 0)
    if config.augmented is not None:
        extra = _triplets(config, vocabulary, more, source.world)
    held_out = _triplets(config, vocabulary, source.validation, source.validation_world)
    real, synthesised = annotated.triplets, extra.triplets
    if config.synthesised_share is not None:
        real, synthesised = mix(real, synthesised, config.synthesised_share, seed=config.seed)
    points = config.action_label == "candidate"  # classes of actions need no graph
    train = PretrainingSteps([*real, *synthesised], source.features, source.world if points else None)
    validation = PretrainingSteps(
        held_out.triplets, source.validation_features, source.validation_world if points else None
    )
    added = sum(len(triplet.path) for triplet in synthesised)
    share = f", {100 * added / len(train):.1f} % synthesised" if added else ""
    cut, full = annotated.cut + extra.cut, annotated.full + extra.full + held_out.full
    lost = ""
    if cut or held_out.cut:
        lost = f", cut at their end to {config.token_limit} tokens: {cut} train, {held_out.cut} held out"
    if full:
        lost += f", {full} triplets fill all {TOKENS} places (perhaps cut when the file was made)"
    noise = not config.generated and config.features == SYNTHETIC
    description = (
        f"{config.source}: {len(train)} steps of {len(real) + len(synthesised)} instructions{share}, "
        f"{len(validation)} held out, {len(vocabulary)} words{lost}"
        + (", features synthesised (noise, no images)" if noise else "")
    )
    return PretrainingData(
        vocabulary=vocabulary,
        train=train,
        validation=validation,
        synthesised=added,
        cut=cut,
        held_out_cut=held_out.cut,
        full=full,
        features_synthesised=noise,
        description=description,
        validation_name=source.validation_name,
    )


def _triplets(
    config: PretrainingConfig, vocabulary: Vocabulary, parts: _Entries, world: NavWorld
) -> FittedTriplets:
    """Return all parts of a source as triplets within the limit, numbered as the head numbers actions."""
    if not any(parts.values()):
        raise DataError(f"{', '.join(parts)}: no instruction")
    fitted = [_fit(config, vocabulary, entries, world, name) for name, entries in parts.items()]
    return FittedTriplets(
        [triplet for part in fitted for triplet in part.triplets],
        sum(part.cut for part in fitted),
        sum(part.full for part in fitted),
    )


def _fit(
    config: PretrainingConfig,
    vocabulary: Vocabulary,
    entries: Sequence[NavItem] | Sequence[Triplet],
    world: NavWorld,
    name: str,
) -> FittedTriplets:
    """Return one part as triplets: those that it has, and those made of its annotations."""
    limit, policy, kind = config.token_limit, config.long_instructions, config.action_label
    items = [entry for entry in entries if isinstance(entry, NavItem)]
    bodies = fit_items(items, vocabulary, source=name, limit=limit, long_instructions=policy)
    texts = [item.instruction for item in items]
    # Two places more than the limit: [CLS] and [SEP].
    rows = dict(zip(texts, vocabulary.frame(bodies.encodings, length=limit + 2), strict=True))
    made = collect_triplets(world, items, rows.__getitem__, kind=kind, length=limit + 2)
    read = fit_triplets(
        [entry for entry in entries if isinstance(entry, Triplet)],
        source=name,
        max_tokens=limit,
        long_instructions=policy,
    )
    check_tokens(read.triplets, vocabulary, source=name)
    numbered = [renumber(triplet, world, kind, source=name) for triplet in read.triplets]
    return FittedTriplets([*numbered, *made], read.cut + bodies.cut, read.full)


def check_tokens(triplets: list[Triplet], vocabulary: Vocabulary, *, source: str) -> None:
    """Check that the vocabulary has the tokens of triplets.

    Raises:
        DataError: naming the source and the triplet.
    """
    for triplet in triplets:
        if max(triplet.tokens) >= len(vocabulary) or min(triplet.tokens) < 0:
            raise DataError(
                f"{source}: triplet {triplet.instr_id!r} has token {max(triplet.tokens)}, but the vocabulary "
                f"has {len(vocabulary)}: give the vocabulary that the triplets were encoded with"
            )


def renumber(triplet: Triplet, world: NavWorld, kind: ActionLabel, *, source: str) -> Triplet:
    """Return a triplet of a file with the action numbers of the head; files number actions as released.

    Raises:
        DataError: naming the source and the triplet, for an action that no head has, a viewpoint that does
            not exist, or a step over a non-edge.
    """
    where = f"{source}: triplet {triplet.instr_id!r}"
    if kind == "prevalent":
        if max(triplet.actions) >= VIEWS:
            raise DataError(f"{where} has action {max(triplet.actions)}; expected 0 to {VIEWS - 1}")
        return triplet
    ways = zip(triplet.path, [*(pose.viewpoint for pose in triplet.path[1:]), None], strict=True)
    try:
        return triplet._replace(
            actions=tuple(
                action_label(world, pose.scan, pose.viewpoint, pose.view, target, kind=kind)
                for pose, target in ways
            )
        )
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def mix(
    real: list[Triplet], synthesised: list[Triplet], share: float, *, seed: int
) -> tuple[list[Triplet], list[Triplet]]:
    """Drop random triplets of the kind that exceeds its share.

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
        # Sorted: neighbouring triplets stay neighbours, as in the file.
        return [triplets[i] for i in np.sort(generator.permutation(len(triplets))[:count])]

    return draw(real, most_real), draw(synthesised, most_synthesised)


def mini_worlds(config: PretrainingConfig) -> tuple[MiniWorld, MiniWorld]:
    """Return the generated worlds to train in, and unseen ones."""
    return (
        MiniWorld(config.world_seed, num_scans=config.scans, feature_dim=config.synthetic_dim),
        MiniWorld(
            config.world_seed + UNSEEN, num_scans=max(2, config.scans // 4), feature_dim=config.synthetic_dim
        ),
    )


def _mini(config: PretrainingConfig) -> _Source:
    seen, unseen = mini_worlds(config)
    items = seen.items(config.train_items, seed=11)
    held_out = unseen.items(config.validation_items, seed=12)
    names = [f"MiniWorld({world.seed})" for world in (seen, unseen)]
    return _Source(
        seen,
        seen.features(),
        {names[0]: items},
        unseen,
        unseen.features(),
        names[1],
        {names[1]: held_out},
        held_out,
    )


def _graphs(config: PretrainingConfig) -> tuple[NavWorld, FeatureStore]:
    world = NavWorld.from_connectivity(str(config.connectivity))
    return world, open_features(
        config.features,
        world,
        dim=config.feature_dim,
        synthetic_dim=config.synthetic_dim,
        columns=config.feature_columns,
    )


def _annotations(config: PretrainingConfig) -> _Source:
    world, features = _graphs(config)
    folder = Path(config.data)
    files = [folder / f"R2R_{name}.json" for name in ("val_unseen", "val_seen")]
    splits = {path: load_r2r(path, world=world) for path in files if path.exists()}
    if not splits:
        raise DataError(
            f"{folder} has neither R2R_val_unseen.json nor R2R_val_seen.json to validate on; "
            "files of triplets are given by --triplets"
        )
    held_out = [item for items in splits.values() for item in items]
    training = folder / "R2R_train.json"
    items = load_r2r(training, world=world, held_out=held_out)
    measured, validation = next(iter(splits.items()))  # val_unseen where it exists
    return _Source(
        world,
        features,
        {str(training): items},
        world,
        features,
        str(measured),
        {str(measured): validation},
        held_out,
    )


def _triplet_files(config: PretrainingConfig) -> _Source:
    world, features = _graphs(config)
    validation = read_triplet_files(str(config.validation))
    held_out = [triplet_item(triplet) for triplets in validation.values() for triplet in triplets]
    training = read_triplet_files(config.triplet_sources, held_out=held_out)
    return _Source(world, features, training, world, features, str(config.validation), validation, held_out)


def _augmented(config: PretrainingConfig, source: _Source) -> _Entries:
    """Return the synthesised instructions, none of whose paths is held out."""
    if config.augmented is None:
        return {}
    path = Path(config.augmented)
    if path.is_dir() or any("teacher_actions" in record for record in read_records(path)[:1]):
        return read_triplet_files(path, held_out=source.held_out, longer_by=1)
    items = load_r2r(config.augmented, world=source.world)
    check_disjoint(
        items,
        source.held_out,
        source=config.augmented,
        world=source.world,
        longer_by=1,
        texts=not config.generated,  # a generated world says the same of many paths
    )
    return {config.augmented: items}


def _vocabulary(config: PretrainingConfig, entries: Iterable[NavItem | Triplet]) -> Vocabulary:
    """Return the vocabulary that is given, or the words of the training instructions."""
    if config.vocabulary is not None:
        return Vocabulary.from_file(config.vocabulary)
    texts = []
    for entry in entries:
        if isinstance(entry, Triplet):
            raise DataError(
                f"triplet {entry.instr_id!r} holds token ids, which mean nothing without the vocabulary they "
                "were encoded with: give vocabulary"
            )
        texts.append(entry.instruction)
    return Vocabulary.train(texts)
