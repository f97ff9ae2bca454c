"""A run measured on another file than its own: checks, and what stands beside the figures.

The figures go into a file of their own, so that ``evaluation.json`` stays what the run was measured on.
"""

import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fq_toolkit.optimus.data.corpus import GRAMMAR, describe_skipped
from fq_toolkit.optimus.data.dialogs import EMBEDDED
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.storage.measured_data import MeasuredSet, digest_of
from fq_toolkit.training.storage.run_folder import RunFolder

logger = logging.getLogger("fq_toolkit")

FEWEST = 2
"""Rows that a model is measured with at least: some figures compare rows with each other."""
_LONGEST_STEM = 60
_ENDING = re.compile(r"\.(txt|tsv|jsonl|ndjson)(\.gz)?$")


class OtherEvaluation(NamedTuple):
    """A measurement on another file than the run's own.

    step: of the checkpoint.
    figures: what was measured; its ``str`` is for people.
    line: on what, with which checkpoint, and in which file.
    """

    step: int
    figures: Any
    line: str


def check_source(source: str) -> None:
    """Refuse the name of an embedded corpus: its held-out part is what its own runs are measured on.

    Raises:
        ConfigError: when the source is such a name.
    """
    if source in (GRAMMAR, EMBEDDED):
        raise ConfigError(f"--valid is {source!r}; expected a file to measure the run on")


def file_set(source: str, rows: Iterable[Any]) -> dict[str, MeasuredSet]:
    """Return what a run is measured on when it is measured on another file.

    Args:
        source: the file.
        rows: all that can be used of it, as JSON can hold them.
    """
    rows = list(rows)
    return {"valid": MeasuredSet(source, digest_of(rows), len(rows))}


def evaluation_path(run: RunFolder, measured: MeasuredSet) -> Path:
    """Return where the figures of another file go: ``evaluation-STEM-HASH.json`` in the run folder.

    Example:
        >>> evaluation_path(RunFolder(Path("run")), MeasuredSet("data/test set.txt.gz", "8c1f" * 16, 5)).name
        'evaluation-test-set-8c1f8c1f8c1f.json'
    """
    stem = _ENDING.sub("", Path(measured.file).name)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem)[:_LONGEST_STEM].strip("-.") or "data"
    return run.path / f"evaluation-{stem}-{measured.record()['hash']}.json"


def tell_leaks(source: str, trained: Iterable[str], measured: Sequence[str], *, noun: str) -> int:
    """Warn when a model is measured with what it was trained on.

    Args:
        source: the file.
        trained: texts that were trained on.
        measured: texts of the file.
        noun: what these are.

    Returns:
        How many texts of the file were trained on.
    """
    known = set(trained)
    count = sum(text in known for text in measured)
    if count:
        logger.warning(
            "%d of the %d %s of %s were trained on: figures are better than they would be on new ones",
            count, len(measured), noun, source,
        )  # fmt: skip
    return count


def tell_skipped(source: str, skipped: dict[str, int]) -> None:
    """Say which lines of a file could not be used."""
    if skipped:
        logger.warning("%s: %s", source, describe_skipped(skipped))


def measured_line(path: Path, measured: MeasuredSet, *, step: int) -> str:
    """Return the line that says what was measured with which checkpoint, and where the figures are."""
    record = measured.record()
    return (
        f"measured on {record['file']} ({record['items']:,} items, hash {record['hash']}) "
        f"with the checkpoint of step {step}: {path}\n"
    )
