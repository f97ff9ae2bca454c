"""Files of triplets: written, read, guarded against validation paths, and brought to one length."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fq_toolkit.prevalent.data.leak_guard import SPLIT_LONGER_BY, check_disjoint
from fq_toolkit.prevalent.data.triplets import TOKENS, Pose, Triplet
from fq_toolkit.prevalent.files import DataError, field, read_records
from fq_toolkit.prevalent.text.length_limit import LongInstructions, fit_encodings
from fq_toolkit.prevalent.text.vocabulary import LONGEST
from fq_toolkit.prevalent.world.angles import VIEWS
from fq_toolkit.prevalent.world.items import NavItem
from fq_toolkit.training.storage.atomic import write_atomic


def save_triplets(path: str | Path, triplets: Iterable[Triplet]) -> Path:
    """Write triplets in the format of the released ones.

    Returns:
        The file.

    Raises:
        RunError: when it cannot be written.
    """
    path = Path(path)
    records = [
        {
            "instr_id": triplet.instr_id,
            "path": [list(pose) for pose in triplet.path],
            "teacher_actions": list(triplet.actions),
            "teacher_action_emd": [
                [int(shown), heading, elevation] for shown, heading, elevation in triplet.directions
            ],
            "instr_encoding": list(triplet.tokens),
        }
        for triplet in triplets
    ]
    write_atomic(path, json.dumps(records).encode())
    return path


def load_triplets(
    path: str | Path,
    *,
    held_out: Iterable[NavItem] = (),
    max_tokens: int = LONGEST,
    long_instructions: LongInstructions = "refuse",
) -> list[Triplet]:
    """Read triplets.

    Args:
        path: JSON list of ``{instr_id, path, teacher_actions, teacher_action_emd, instr_encoding}``.
        held_out: items of validation and test splits, none of whose paths may be in this file. The published
            file does hold validation paths.
        max_tokens: of the longest instruction, without CLS and SEP; encodings get two places more.
        long_instructions: whether longer ones are refused or cut.

    Raises:
        DataError: naming file and item, for a damaged file, fields that do not fit each other, an
            instruction of less than 80 ids or of more tokens than the limit, or a held-out path.
    """
    found = read_triplets(path, held_out=held_out)
    return fit_triplets(
        found, source=str(path), max_tokens=max_tokens, long_instructions=long_instructions
    ).triplets


class FittedTriplets(NamedTuple):
    """Triplets whose instructions have one length, and how many were longer.

    triplets: of ``max_tokens + 2`` ids each.
    cut: instructions that lost their end.
    full: instructions that filled all 80 places of the file: perhaps cut when it was made.
    """

    triplets: list[Triplet]
    cut: int
    full: int


def fit_triplets(
    triplets: Sequence[Triplet],
    *,
    source: str,
    max_tokens: int = LONGEST,
    long_instructions: LongInstructions = "refuse",
) -> FittedTriplets:
    """Bring encodings to one length: padding goes or is added, and what is too long is refused or cut.

    Args:
        triplets: as `read_triplets` returns them.
        source: file, for messages.
        max_tokens: of the longest instruction, without CLS and SEP.
        long_instructions: whether longer ones are refused or cut: SEP stays, words before it go.

    Raises:
        DataError: naming source, instruction, its tokens and the limit.
    """
    rows = [triplet.tokens[: _used(triplet.tokens)] for triplet in triplets]
    fitted = fit_encodings(
        [row[1:-1] for row in rows],
        [triplet.instr_id for triplet in triplets],
        source=source,
        limit=max_tokens,
        long_instructions=long_instructions,
    )
    found = []
    for triplet, row, body in zip(triplets, rows, fitted.encodings, strict=True):
        ids = (*row[:1], *body, *row[1:][-1:])
        found.append(triplet._replace(tokens=ids + (0,) * (max_tokens + 2 - len(ids))))
    return FittedTriplets(found, fitted.cut, sum(len(row) == TOKENS for row in rows))


def _used(tokens: Sequence[int]) -> int:
    """Return how many token ids come before the padding."""
    return max((place + 1 for place, token in enumerate(tokens) if token), default=0)


def read_triplets(
    path: str | Path, *, held_out: Iterable[NavItem] = (), longer_by: int | None = SPLIT_LONGER_BY
) -> list[Triplet]:
    """Read triplets with the encodings as they are in the file; see `load_triplets` and `check_disjoint`.

    Raises:
        DataError: as `load_triplets`, but for no limit of tokens.
    """
    path = Path(path)
    found = []
    for position, record in enumerate(read_records(path)):
        name = str(field(record, "instr_id", (int, str), f"{path}: item {position}"))
        where = f"{path}: item {name!r}"
        poses = [
            _pose(entry, f"{where}, step {i}") for i, entry in enumerate(field(record, "path", list, where))
        ]
        actions = field(record, "teacher_actions", list, where)
        directions = field(record, "teacher_action_emd", list, where)
        tokens = field(record, "instr_encoding", list, where)
        if not len(poses) == len(actions) == len(directions) or not poses:
            raise DataError(
                f"{where}: {len(poses)} poses, {len(actions)} actions and {len(directions)} action "
                "embeddings; expected one of each per step"
            )
        if len(tokens) < TOKENS:
            raise DataError(
                f"{where}: instr_encoding has {len(tokens)} ids; expected {TOKENS}, padded with 0"
            )
        if not all(type(action) is int and 0 <= action <= VIEWS for action in actions) or actions[-1] != 0:
            raise DataError(
                f"{where}: teacher_actions must be 0 to {VIEWS} and end with 0 (stop), got {actions}"
            )
        try:
            moves = tuple((float(a), float(b), float(c)) for a, b, c in directions)
            ids = tuple(int(token) for token in tokens)
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{where}: an action embedding or a token id is no number ({error})") from error
        used = _used(tokens)
        if not used or not all(type(token) is int and token for token in tokens[:used]):
            raise DataError(
                f"{where}: instr_encoding must be token ids, then 0 as padding; got {tokens[:80]}"
            )
        found.append(Triplet(name, tuple(poses), tuple(actions), moves, ids))
    paths = [
        NavItem(t.instr_id, t.path[0].scan, 0.0, tuple(pose.viewpoint for pose in t.path), (), "")
        for t in found
    ]
    check_disjoint(paths, held_out, source=str(path), longer_by=longer_by)
    return found


def _pose(entry: Any, where: str) -> Pose:
    """Return the pose of ``[scan, viewpoint, viewIndex, heading, elevation]``."""
    if (
        not isinstance(entry, list)
        or [type(value) for value in entry[:3]] != [str, str, int]
        or len(entry) != 5
        or not all(isinstance(value, (int, float)) for value in entry[3:])
        or not 0 <= entry[2] < VIEWS
    ):
        raise DataError(f"{where} is {str(entry)[:80]}; expected [scan, viewpoint, view, heading, elevation]")
    try:
        return Pose(entry[0], entry[1], entry[2], float(entry[3]), float(entry[4]))
    except OverflowError as error:
        raise DataError(f"{where}: heading or elevation is no angle ({error})") from error
