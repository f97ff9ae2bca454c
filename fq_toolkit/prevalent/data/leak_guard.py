"""Finding held-out paths and texts in training data, also in other notations."""

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from fq_toolkit.prevalent.files import DataError
from fq_toolkit.prevalent.world.items import NavItem
from fq_toolkit.prevalent.world.paths import drop_repeats
from fq_toolkit.prevalent.world.world import NavWorld

SPLIT_LONGER_BY = 3
"""R2R's own training split extends 74 paths of val_seen by one or two steps; joined paths are far longer."""

_LEAST_STEPS = 2  # shorter held-out paths lie inside many honest ones
_LEAST_WORDS = 8  # shorter texts, such as "go up the stairs", are written by anybody
_LEAST_WORDS_INSIDE = 12  # of a held-out text inside a longer one, where a chance match is likelier


def words_of(text: str) -> tuple[str, ...]:
    """Return the words of a text without case and punctuation.

    Example:
        >>> words_of("Turn LEFT, then stop.")
        ('turn', 'left', 'then', 'stop')
    """
    return tuple(re.findall(r"\w+", text.casefold()))


def whole_path(scan: str, path: Sequence[str], world: NavWorld | None = None) -> tuple[str, ...]:
    """Drop repeated viewpoints of a path and fill gaps with the shortest path.

    Args:
        scan: scan of the path.
        path: viewpoints.
        world: the graphs. Nothing is filled in without them, or where they lack the viewpoints.

    Example:
        >>> whole_path("s", ["a", "a", "b"])
        ('a', 'b')
    """
    once = drop_repeats(path)
    if world is None or scan not in world.names:
        return tuple(once)
    here, filled = world.scan(scan), once[:1]
    for a, b in itertools.pairwise(once):
        i, j = here.index.get(a), here.index.get(b)
        if i is None or j is None or here.adjacent[i, j] or not here.distances[i, j] < float("inf"):
            filled.append(b)
        else:
            filled += [here.viewpoints[k] for k in here.shortest_path(i, j)[1:]]
    return tuple(filled)


class LeakGuard:
    """A search for training items that reveal the path or the words of a held-out item.

    An item does so if its path is a held-out one (repeated viewpoints count once, gaps are filled with the
    shortest path); if it consists of only the start and the goal of a held-out path; if a held-out path lies
    inside its own; or if, in the same scan, its text is or contains that of a held-out item.

    Args:
        held_out: items of validation and test splits.
        world: the graphs, to complete paths of which only some viewpoints are given.
        longer_by: a path that contains a held-out one counts if it has at least this many more steps; None
            accepts all longer paths.
        texts: whether words are compared too. Texts of fewer than 8 words never count.
    """

    def __init__(
        self,
        held_out: Iterable[NavItem],
        *,
        world: NavWorld | None = None,
        longer_by: int | None = SPLIT_LONGER_BY,
        texts: bool = True,
    ) -> None:
        self.world, self.longer_by, self.texts = world, longer_by, texts
        # Tables by path, both ends, first step and words: a training set is searched in one pass.
        self._paths: dict[tuple[str, tuple[str, ...]], str] = {}
        self._ends: dict[tuple[str, str, str], str] = {}
        self._first_steps: dict[tuple[str, str, str], list[tuple[str, ...]]] = defaultdict(list)
        self._words: dict[tuple[str, tuple[str, ...]], str] = {}
        self._beginnings: dict[tuple[str, tuple[str, ...]], list[tuple[str, ...]]] = defaultdict(list)
        self._known: dict[tuple[str, tuple[str, ...]], str | None] = {}
        self._scans: set[str] = set()
        for item in held_out:
            self._scans.add(item.scan)
            self._add_path(item)
            # Only within a scan: the same sentence about another building reveals nothing.
            words = words_of(item.instruction) if texts else ()
            if len(words) >= _LEAST_WORDS and (item.scan, words) not in self._words:
                self._words[item.scan, words] = item.instr_id
                if len(words) >= _LEAST_WORDS_INSIDE:
                    self._beginnings[item.scan, words[:_LEAST_WORDS]].append(words)

    def _add_path(self, item: NavItem) -> None:
        """Enter a held-out path into the tables."""
        path = whole_path(item.scan, item.path, self.world)
        if (item.scan, path) in self._paths:
            return
        self._paths[item.scan, path] = item.instr_id
        if len(path) > 1:
            self._ends.setdefault((item.scan, path[0], path[-1]), item.instr_id)
        if len(path) > _LEAST_STEPS:
            self._first_steps[item.scan, path[0], path[1]].append(path)

    def find(self, item: NavItem) -> str | None:
        """Return what an item reveals of a held-out one, as part of a sentence, or None."""
        if item.scan not in self._scans:
            return None
        key = (item.scan, item.path)  # several instructions share a path: it is searched once
        if key not in self._known:
            self._known[key] = self._find_path(*key)
        return self._known[key] or (self._find_words(item) if self.texts else None)

    def _find_path(self, scan: str, given: tuple[str, ...]) -> str | None:
        """Return what a path reveals: `find`."""
        path = whole_path(scan, given, self.world)
        name = self._paths.get((scan, path))
        if name is not None:
            return f"has the path of the held-out item {name!r}"
        bare = whole_path(scan, given)  # without the graphs, so nothing is filled in
        if len(bare) == 2 and (len(path) > 2 or not self._is_edge(scan, bare)):
            # Among equally short paths, the annotated one need not be the one that was filled in.
            name = self._ends.get((scan, *bare))
            if name is not None:
                return f"goes from the start to the goal of the held-out item {name!r}"
        if self.longer_by is None:
            return None
        for i, step in enumerate(itertools.pairwise(path)):
            for other in self._first_steps.get((scan, *step), ()):
                if len(path) - len(other) >= self.longer_by and path[i : i + len(other)] == other:
                    return f"has the path of the held-out item {self._paths[scan, other]!r} inside its own"
        return None

    def _is_edge(self, scan: str, ends: Sequence[str]) -> bool:
        """Return whether two viewpoints are known to be neighbours; False without graphs."""
        if self.world is None or scan not in self.world.names:
            return False
        here = self.world.scan(scan)
        i, j = (here.index.get(viewpoint) for viewpoint in ends)
        return i is not None and j is not None and bool(here.adjacent[i, j])

    def _find_words(self, item: NavItem) -> str | None:
        """Return what a text reveals: `find`."""
        words = words_of(item.instruction)
        name = self._words.get((item.scan, words))
        if name is not None:
            return f"has the words of the held-out item {name!r}"
        for i in range(len(words) - _LEAST_WORDS_INSIDE + 1):
            for other in self._beginnings.get((item.scan, words[i : i + _LEAST_WORDS]), ()):
                if words[i : i + len(other)] == other:
                    return (
                        f"has the words of the held-out item {self._words[item.scan, other]!r} inside its own"
                    )
        return None


def check_disjoint(
    training: Iterable[NavItem],
    held_out: Iterable[NavItem],
    *,
    source: str = "the training set",
    world: NavWorld | None = None,
    longer_by: int | None = SPLIT_LONGER_BY,
    texts: bool = True,
) -> None:
    """Check that no held-out item is in a training set, in its own or another form; see `LeakGuard`.

    Args:
        training: tasks to train on.
        held_out: tasks of validation and test splits.
        source: file or name of the training set, for messages.
        world: the graphs, to complete paths of which only some viewpoints are given.
        longer_by: a path that contains a held-out one counts if it has at least this many more steps. The
            default is what R2R's own splits need; 1 is right for other files; None accepts longer paths.
        texts: whether words are compared too.

    Raises:
        DataError: naming the source, the training item and the held-out item.

    The published triplets contain the validation splits as well as the training split; with this guard, ours
    do not.
    """
    guard = LeakGuard(held_out, world=world, longer_by=longer_by, texts=texts)
    for item in training:
        leak = guard.find(item)
        if leak is not None:
            raise DataError(f"{source}: item {item.instr_id!r} {leak}: leave it out of training")
