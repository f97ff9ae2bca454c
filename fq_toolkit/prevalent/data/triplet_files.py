"""Files of triplets: written, read, guarded against validation paths, and brought to one length."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fq_toolkit.prevalent.data.leak_guard import SPLIT_LONGER_BY, check_disjoint
from fq_toolkit.prevalent.data.triplets import TOKENS, Pose, Triplet, triplet_item
from fq_toolkit.prevalent.files import (
    RECORD_ENDINGS,
    DataError,
    check_readable,
    field,
    is_record_file,
    read_records,
    write_json,
)
from fq_toolkit.prevalent.text.length_limit import LongInstructions, fit_encodings
from fq_toolkit.prevalent.text.vocabulary import LONGEST
from fq_toolkit.prevalent.world.angles import VIEWS
from fq_toolkit.prevalent.world.items import NavItem

_LOG = logging.getLogger("fq_toolkit")
_PROSE = (".md", ".txt", ".rst")  # a README beside the files is no reason to refuse a folder


def save_triplets(path: str | Path, triplets: Iterable[Triplet]) -> Path:
    """Write triplets in the format of the released ones.

    Returns:
        The file.

    Raises:
        RunError: if it cannot be written.
    """
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
    return write_json(Path(path), records)


def load_triplets(
    source: str | Path | Iterable[str | Path],
    *,
    held_out: Iterable[NavItem] = (),
    max_tokens: int = LONGEST,
    long_instructions: LongInstructions = "refuse",
) -> list[Triplet]:
    """Read triplets from a file, a folder of files, or several of both.

    A file is a JSON list of ``{instr_id, path, teacher_actions, teacher_action_emd, instr_encoding}``, or a
    ``.jsonl`` file with one such object a line; both may be compressed (``.gz``). The files of a folder are
    read in the order of their names.

    Args:
        source: files, and folders that hold nothing but such files.
        held_out: items of validation and test splits, none of whose paths may be in a file. The published
            files do hold validation paths.
        max_tokens: length of the longest instruction, without CLS and SEP; encodings have two places more.
        long_instructions: whether longer ones are refused or cut.

    Returns:
        The triplets. One that is in several files is returned once, and the log says so.

    Raises:
        DataError: naming file and item, for a damaged file or one of another kind, fields that do not fit
            each other, an instruction of less than 80 ids or of more tokens than the limit, or a held-out
            path.
    """
    return [
        triplet
        for path, triplets in read_triplet_files(source, held_out=held_out).items()
        for triplet in fit_triplets(
            triplets, source=path, max_tokens=max_tokens, long_instructions=long_instructions
        ).triplets
    ]


class FittedTriplets(NamedTuple):
    """Triplets whose encodings have one length, and how many were longer.

    triplets: the triplets, with ``max_tokens + 2`` ids each.
    cut: number of instructions that lost their end.
    full: number of instructions that fill all 80 places of the file: perhaps cut when the file was made.
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
    """Bring encodings to one length: padding is dropped or added, and what is too long is refused or cut.

    Args:
        triplets: as `read_triplets` returns them.
        source: file, for messages.
        max_tokens: length of the longest instruction, without CLS and SEP.
        long_instructions: whether longer ones are refused or cut; SEP stays, the words before it are dropped.

    Raises:
        DataError: naming source, instruction, its tokens and the limit.
    """
    rows = [triplet.tokens[: _used(triplet.tokens)] for triplet in triplets]  # CLS .. SEP
    fitted = fit_encodings(
        [row[1:-1] for row in rows],
        [triplet.instr_id for triplet in triplets],
        source=source,
        limit=max_tokens,
        long_instructions=long_instructions,
    )
    framed = [
        (*row[:1], *body, *row[1:][-1:]) for row, body in zip(rows, fitted.encodings, strict=True)
    ]  # a row of one id has no SEP
    padded = [
        triplet._replace(tokens=ids + (0,) * (max_tokens + 2 - len(ids)))
        for triplet, ids in zip(triplets, framed, strict=True)
    ]
    return FittedTriplets(padded, fitted.cut, sum(len(row) == TOKENS for row in rows))


def _used(tokens: Sequence[int]) -> int:
    """Return how many token ids precede the padding."""
    return max((place + 1 for place, token in enumerate(tokens) if token), default=0)


def list_triplet_files(source: str | Path | Iterable[str | Path]) -> list[Path]:
    """Return the files of triplets that are named, with those of the folders that are named.

    Raises:
        DataError: for a folder that is empty or holds something else, or a file that is named twice.
    """
    paths: list[Path] = []
    for path in [Path(source)] if isinstance(source, (str, Path)) else [Path(one) for one in source]:
        paths += _files_of_folder(path) if path.is_dir() else [path]
    if not paths:
        raise DataError("no file of triplets is given")
    # Two names of one file, such as a link and its target, would train twice on every triplet of it.
    known: dict[Path, Path] = {}
    for path in paths:
        check_readable(path)  # before resolve, which has errors of its own
        other = known.setdefault(path.resolve(), path)
        if other is not path:
            raise DataError(f"{path} is given twice" + (f", also as {other}" if other != path else ""))
    return paths


def _files_of_folder(folder: Path) -> list[Path]:
    """Return the files of a folder of triplets, which may also hold a README and hidden files."""
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror}") from error
    entries = [path for path in entries if path.suffix.lower() not in _PROSE or path.is_dir()]
    for path in entries:
        if not is_record_file(path):
            raise DataError(
                f"{path} is {'a folder' if path.is_dir() else 'no file of triplets'}; a folder of triplets "
                f"holds only files that end in {', '.join(RECORD_ENDINGS)}, also with .gz: give the files or "
                "folders one by one"
            )
    if not entries:
        raise DataError(f"{folder} holds no files; expected files of triplets")
    return entries


def read_triplet_files(
    source: str | Path | Iterable[str | Path],
    *,
    held_out: Iterable[NavItem] = (),
    longer_by: int | None = SPLIT_LONGER_BY,
) -> dict[str, list[Triplet]]:
    """Read files of triplets with the encodings as they are; see `load_triplets` and `check_disjoint`.

    Returns:
        File -> its triplets, without those that are in an earlier file already.

    Raises:
        DataError: as `load_triplets`, but for no limit of tokens.
    """
    paths, held_out = list_triplet_files(source), list(held_out)
    read: dict[str, list[Triplet]] = {}
    origin: dict[Triplet, Path] = {}  # the first file that each is in
    for path in paths:
        triplets = read_triplets(path, held_out=held_out, longer_by=longer_by)
        if len(paths) > 1:  # within a file, repetitions are the author's choice of weights
            repeated = [triplet for triplet in triplets if origin.setdefault(triplet, path) is not path]
            if repeated:
                _LOG.warning(
                    "%s: %d of %d triplets are in %s too and are left out here, the first is %r",
                    path,
                    len(repeated),
                    len(triplets),
                    origin[repeated[0]],
                    repeated[0].instr_id,
                )
                triplets = [triplet for triplet in triplets if origin[triplet] is path]
        read[str(path)] = triplets
    return read


def read_triplets(
    path: str | Path, *, held_out: Iterable[NavItem] = (), longer_by: int | None = SPLIT_LONGER_BY
) -> list[Triplet]:
    """Read one file of triplets; see `read_triplet_files`.

    Raises:
        DataError: as `read_triplet_files`.
    """
    path = Path(path)
    triplets = [
        _triplet(record, f"{path}: item {position}", str(path))
        for position, record in enumerate(read_records(path))
    ]
    check_disjoint(map(triplet_item, triplets), held_out, source=str(path), longer_by=longer_by)
    return triplets


def _triplet(record: dict[str, Any], where: str, source: str) -> Triplet:
    """Return the triplet of a record, checked field by field."""
    name = str(field(record, "instr_id", (int, str), where))
    where = f"{source}: item {name!r}"
    poses = [
        _pose(entry, f"{where}, step {step}") for step, entry in enumerate(field(record, "path", list, where))
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
        raise DataError(f"{where}: instr_encoding has {len(tokens)} ids; expected {TOKENS}, padded with 0")
    # `type() is int`: true and 1.0 compare equal to 1, but are signs of another format.
    if not all(type(action) is int and 0 <= action <= VIEWS for action in actions) or actions[-1] != 0:
        raise DataError(f"{where}: teacher_actions must be 0 to {VIEWS} and end with 0 (stop), got {actions}")
    try:
        moves = tuple((float(a), float(b), float(c)) for a, b, c in directions)
        ids = tuple(int(token) for token in tokens)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where}: an action embedding or a token id is no number ({error})") from error
    used = _used(tokens)
    if not used or not all(type(token) is int and token for token in tokens[:used]):
        raise DataError(f"{where}: instr_encoding must be token ids, then 0 as padding; got {tokens[:80]}")
    return Triplet(name, tuple(poses), tuple(actions), moves, ids)


def _pose(entry: Any, where: str) -> Pose:
    """Return the pose that ``[scan, viewpoint, viewIndex, heading, elevation]`` holds."""
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
