"""Loaders for the annotation files of R2R, NDH (CVDN) and HANNA."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from fq_toolkit.prevalent.data.leak_guard import SPLIT_LONGER_BY, check_disjoint
from fq_toolkit.prevalent.files import DataError, field, read_records, strings
from fq_toolkit.prevalent.text.length_limit import check_lengths
from fq_toolkit.prevalent.world.items import NavItem, check_items, check_unique
from fq_toolkit.prevalent.world.world import NavWorld

PathType = Literal["planner", "player", "trusted"]
Tokenize = Callable[[str], Sequence[object]]

SECRET = frozenset({"planner_path", "player_path", "end_panos"})
"""What the organizers of CVDN's challenge keep to themselves: an item has all of it or none."""


def _heading(record: dict[str, Any], where: str) -> float:
    """Return the heading of a record, checked to be finite."""
    try:
        value = float(field(record, "heading", (int, float), where))
    except OverflowError:  # JSON integers may be of any length
        value = math.inf
    if not math.isfinite(value):
        raise DataError(f"{where}: heading is {value}; expected radians")
    return value


def _named(path: Path | str, position: int, record: dict[str, Any], name: str) -> tuple[str, str]:
    """Return the identifier of a record, and file and item for messages."""
    identifier = str(field(record, name, (int, str), f"{path}: item {position}"))
    return identifier, f"{path}: {name} {identifier}"


def _finish(
    items: list[NavItem],
    path: Path,
    world: NavWorld | None,
    limit: int | None,
    tokenize: Tokenize,
    held_out: Iterable[NavItem],
    *,
    own: bool = True,
) -> list[NavItem]:
    """Run the checks that all loaders share.

    ``own`` says that a path and a text belong to one item of the dataset. In NDH and HANNA they do not: short
    paths in a building coincide and requests repeat, so only whole held-out paths count there.
    """
    # From cheap to expensive: the first error is the one that is shown.
    check_unique(items, source=str(path))
    if limit is not None:
        check_lengths(items, limit, tokenize=tokenize, source=str(path))
    if world is not None:  # without the graphs only the file itself can be checked
        check_items(items, world, source=str(path))
    check_disjoint(
        items,
        held_out,
        source=str(path),
        world=world,
        longer_by=SPLIT_LONGER_BY if own else None,
        texts=own,
    )
    return items


def r2r_items(records: list[dict[str, Any]], source: Path | str) -> list[NavItem]:
    """Return the items of the records of an R2R file.

    Args:
        records: as in `load_r2r`.
        source: file or name, for messages.

    Raises:
        DataError: naming source and item.
    """
    items = []
    for position, record in enumerate(records):
        identifier, where = _named(source, position, record, "path_id")
        viewpoints = strings(record, "path", where)
        scan, heading = field(record, "scan", str, where), _heading(record, where)
        # The test split holds only the start and no distance. Goals must not be guessed from it: the start
        # would be the goal, and an agent that never moves would score 100 %.
        goals = viewpoints[-1:] if len(viewpoints) > 1 or "distance" in record else ()
        for number, text in enumerate(strings(record, "instructions", where)):
            items.append(NavItem(f"{identifier}_{number}", scan, heading, viewpoints, goals, text))
    return items


def load_r2r(
    path: str | Path,
    *,
    world: NavWorld | None = None,
    max_tokens: int | None = None,
    tokenize: Tokenize = str.split,
    held_out: Iterable[NavItem] = (),
) -> list[NavItem]:
    """Load an R2R file: one item per instruction, named ``<path_id>_<number>``.

    The test split holds only start viewpoints; its items have no goals.

    Args:
        path: JSON list of ``{path_id, scan, heading, path, instructions}``.
        world: graphs to check scans, viewpoints and reachability against.
        max_tokens: longest instruction that is accepted.
        tokenize: text -> tokens, for ``max_tokens``; by default words.
        held_out: items of validation and test splits, none of whose paths and texts may be in this file; see
            `check_disjoint`.

    Raises:
        DataError: naming file and item.

    Example:
        >>> import json, tempfile
        >>> record = {"path_id": 7, "scan": "s", "heading": 0.5, "path": ["a", "b"], "instructions": ["go"]}
        >>> with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        ...     json.dump([record], file)
        ...     file.flush()
        ...     load_r2r(file.name)[0].instr_id
        '7_0'
    """
    path = Path(path)
    items = r2r_items(read_records(path), path)
    return _finish(items, path, world, max_tokens, tokenize, held_out)


def hanna_items(records: list[dict[str, Any]], source: Path | str) -> list[NavItem]:
    """Return the items of the records of a HANNA file.

    Args:
        records: as in `load_hanna`.
        source: file or name, for messages.

    Raises:
        DataError: naming source and item.
    """
    items = []
    for position, record in enumerate(records):
        identifier, where = _named(source, position, record, "path_id")
        lists = field(record, "paths", list, where)
        # Each entry is checked as if it were a field, for the same messages as everywhere.
        paths = [strings({"paths": entry}, "paths", f"{where}, path {i}") for i, entry in enumerate(lists)]
        if len({entry[0] for entry in paths}) != 1:
            raise DataError(f"{where}: paths must be a list of paths with one common start")
        # Several paths may end at the same goal; their order decides between equally near ones.
        goals = tuple(dict.fromkeys(entry[-1] for entry in paths))
        scan, heading = field(record, "scan", str, where), _heading(record, where)
        for number, text in enumerate(strings(record, "instructions", where)):
            items.append(NavItem(f"{identifier}_{number}", scan, heading, paths[0], goals, text))
    return items


def load_hanna(
    path: str | Path,
    *,
    world: NavWorld | None = None,
    max_tokens: int | None = None,
    tokenize: Tokenize = str.split,
    held_out: Iterable[NavItem] = (),
) -> list[NavItem]:
    """Load a HANNA file: one item per instruction; the end of each of its paths is a goal.

    Args:
        path: JSON list of ``{path_id, scan, heading, paths, instructions}``.
        world: as in `load_r2r`.
        max_tokens: as in `load_r2r`.
        tokenize: as in `load_r2r`.
        held_out: as in `load_r2r`.

    Raises:
        DataError: naming file and item.
    """
    path = Path(path)
    items = hanna_items(read_records(path), path)
    return _finish(items, path, world, max_tokens, tokenize, held_out, own=False)


def trusted_path(planner: Sequence[str], player: Sequence[str]) -> Sequence[str]:
    """Return the player's path if it visits the planner's goal after its start, else the planner's path.

    Example:
        >>> trusted_path(["a", "b"], ["a", "c", "b", "d"])
        ['a', 'c', 'b', 'd']
        >>> trusted_path(["a", "b"], ["b", "c"])
        ['a', 'b']

    Source: the mixed supervision of "Vision-and-Dialog Navigation" (CVDN), arXiv 1907.04957.
    """
    return player if planner[-1] in player[1:] else planner


def dialog_text(target: str, turns: Iterable[tuple[str, str]]) -> str:
    """Return target and dialog as ``<TAR> target <NAV> question <ORA> answer ...``.

    Args:
        target: the object to find.
        turns: (role, message) pairs; the roles are navigator and oracle.

    Raises:
        ValueError: for another role.

    Example:
        >>> dialog_text("towel", [("navigator", "left?"), ("oracle", "yes")])
        '<TAR> towel <NAV> left? <ORA> yes'
    """
    marks = {"navigator": "<NAV>", "oracle": "<ORA>"}  # who speaks decides who knows the way
    words = ["<TAR>", target]
    for role, message in turns:
        if role not in marks:
            raise ValueError(f"a turn has the role {role!r}; expected 'navigator' or 'oracle'")
        words += [marks[role], message]
    return " ".join(words)


def ndh_items(
    records: list[dict[str, Any]],
    source: Path | str,
    *,
    target: PathType = "trusted",
    max_words: int | None = None,
) -> list[NavItem]:
    """Return the items of the records of an NDH file.

    Args:
        records: as in `load_ndh`.
        source: file or name, for messages.
        target: as in `load_ndh`.
        max_words: as in `load_ndh`.

    Raises:
        DataError: naming source and item.
        ValueError: for an unknown target.
    """
    if target not in get_args(PathType):
        raise ValueError(f"target must be one of {', '.join(map(repr, get_args(PathType)))}, got {target!r}")
    items = []
    for position, record in enumerate(records):
        identifier, where = _named(source, position, record, "inst_idx")
        # Submissions hold numbers, so "007" and 7 would be one item there.
        if not identifier.isdigit() or str(int(identifier)) != identifier:
            raise DataError(f"{where}: inst_idx must be a number from 0: submissions are told apart by it")
        start = field(record, "start_pano", dict, where)
        secret = not SECRET & set(record)
        if secret:  # the test split: the start is all that is known of the way
            chosen: Sequence[str] = (field(start, "pano", str, where),)
        else:
            planner = chosen = strings(record, "planner_path", where)
            if target != "planner":
                player = strings(record, "player_path", where)
                chosen = player if target == "player" else trusted_path(planner, player)
        turns = [
            (field(turn, "role", str, where), field(turn, "message", str, where))
            for turn in field(record, "dialog_history", list, where)
        ]
        try:
            text = dialog_text(field(record, "target", str, where), turns)
        except ValueError as error:
            raise DataError(f"{where}: {error}") from error
        if max_words is not None:
            text = " ".join(text.split()[-max_words:])  # the last answer matters most
        items.append(
            NavItem(
                identifier,
                field(record, "scan", str, where),
                _heading(start, where),
                tuple(chosen),
                () if secret else tuple(chosen[-1:]),
                text,
                regions=() if secret else strings(record, "end_panos", where),
            )
        )
    return items


def load_ndh(
    path: str | Path,
    *,
    target: PathType = "trusted",
    world: NavWorld | None = None,
    max_words: int | None = None,
    held_out: Iterable[NavItem] = (),
) -> list[NavItem]:
    """Load an NDH file: one item per dialog turn, named ``<inst_idx>``.

    Episodes start with a level camera, as in the official task: the elevations in its files are those of the
    camera that people used. The test split has neither paths nor end viewpoints; its items have no goals.

    Args:
        path: JSON list of CVDN's navigation from dialog history.
        target: which path is the annotated one: ``"planner"``, ``"player"`` or ``"trusted"``.
        world: as in `load_r2r`.
        max_words: how many words of target and dialog are kept at most; the oldest, on the left, are dropped.
        held_out: as in `load_r2r`.

    Raises:
        DataError: naming file and item.
        ValueError: for an unknown target.
    """
    path = Path(path)
    items = ndh_items(read_records(path), path, target=target, max_words=max_words)
    return _finish(items, path, world, None, str.split, held_out, own=False)


def load_planner_goals(path: str | Path) -> dict[str, str]:
    """Return ``inst_idx -> last viewpoint of the planner's path`` of an NDH file; of a test split nothing.

    Raises:
        DataError: naming file and item.
    """
    path = Path(path)
    goals = {}
    for position, record in enumerate(read_records(path)):
        identifier, where = _named(path, position, record, "inst_idx")
        if SECRET & set(record):
            goals[identifier] = strings(record, "planner_path", where)[-1]
    return goals
