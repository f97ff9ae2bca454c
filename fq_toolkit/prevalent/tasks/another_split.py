"""Splits that a run was not set up with: another split of its data folder, or another annotation file."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fq_toolkit.prevalent.data.leak_guard import LeakGuard
from fq_toolkit.prevalent.data.splits import Split, fingerprint, split_parts
from fq_toolkit.prevalent.files import DataError, read_records
from fq_toolkit.prevalent.tasks.config import MINI, DataConfig
from fq_toolkit.prevalent.tasks.loading import Dataset
from fq_toolkit.prevalent.world.features import open_features
from fq_toolkit.prevalent.world.items import NavItem
from fq_toolkit.prevalent.world.world import NavWorld
from fq_toolkit.training.config import nearest
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.storage.measured_data import MeasuredSet
from fq_toolkit.training.storage.run_folder import RunFolder

_LOG = logging.getLogger("fq_toolkit")
_SHOWN = 10  # scans that a message names


class Another(NamedTuple):
    """What a user asks to measure on in place of the run's own validation splits.

    split: of the data folder.
    annotations: a file.
    features: of its views; None takes those of the run.
    """

    split: str | None = None
    annotations: Path | None = None
    features: Path | None = None

    @property
    def given(self) -> bool:
        """Return whether anything was asked for.

        Raises:
            ConfigError: when both a split and a file were, or features of nothing.
        """
        if self.split is not None and self.annotations is not None:
            raise ConfigError("--split and --annotations both say what to measure on: give one of them")
        asked = self.split is not None or self.annotations is not None
        if self.features is not None and not asked:
            raise ConfigError("--features belongs to --split or --annotations: a run keeps its own features")
        return asked

    def generated(self, config: DataConfig) -> str | None:
        """Return the name of a generated split, which has no file; None for what is read from a file."""
        return self.split if config.data == MINI else None


def open_another(another: Another, config: DataConfig, dataset: Dataset, own: Mapping[str, Split]) -> Split:
    """Read a split as its dataset is read, whole: a trial's ``limit`` does not count.

    Args:
        another: what is asked for.
        config: options of the run.
        dataset: how its files are named and read.
        own: the splits that the run is set up with, ``train`` among them.

    Raises:
        DataError: naming file and item, or the scans that have no graph or no features.
        ConfigError: for a split that there is not.
    """
    if another.split is not None and config.data == MINI:
        if another.split not in own:
            raise ConfigError(f"generated worlds have the splits {', '.join(own)}; got {another.split!r}")
        return own[another.split]
    # Scans first: a missing graph or feature concerns all items of a scan, and is said of all scans at once.
    path = another.annotations or _file_of(str(another.split), Path(config.data), dataset.stem)
    scans = _scans_of(path)
    place = _place_of(path, scans, config, own)
    items = dataset.read(path, place.world, {})
    split = place._replace(name=another.split or path.stem, items=items, source=str(path))
    if another.features is not None:
        store = open_features(
            str(another.features), split.world, dim=split.features.dim, columns=config.feature_columns
        )
        split = split._replace(features=store, synthesised=False)
    known = {scan for scan, _ in split.features.keys}
    if lost := [scan for scan in scans if scan not in known]:
        raise DataError(
            f"{another.features or config.features}: no features of {len(lost)} of the {len(scans)} scans of "
            f"{path}: {_some(lost)}. Give a file that has them: --features FILE"
        )
    return split


def _file_of(split: str, folder: Path, stem: str) -> Path:
    """Return the annotation file of a split."""
    path = folder / f"{stem}_{split}.json"
    if path.exists():
        return path
    # What there is, whatever it was called: splits are only a part of a file name.
    known = sorted(file.stem.removeprefix(f"{stem}_") for file in folder.glob(f"{stem}_*.json"))
    raise ConfigError(f"{folder} has no {path.name}; {nearest(split, known)}")


def _scans_of(path: Path) -> list[str]:
    """Return the scans that a file names; what else is in it is checked when it is read."""
    names = (record.get("scan") for record in read_records(path))
    return list(dict.fromkeys(name for name in names if isinstance(name, str)))


def _place_of(path: Path, scans: Sequence[str], config: DataConfig, own: Mapping[str, Split]) -> Split:
    """Return a split of the run in whose world a file lies; generated runs have two worlds."""
    fewest: list[str] | None = None
    for split in own.values():
        lost = [scan for scan in scans if scan not in split.world.names]
        if not lost:
            return split
        fewest = lost if fewest is None else min(fewest, lost, key=len)
    lost = fewest or []
    raise DataError(
        f"{path}: {len(lost)} of its {len(scans)} scans have no graph in "
        f"{config.connectivity or config.data}: {_some(lost)}"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def shown_in(
    training: Iterable[NavItem], items: Iterable[NavItem], world: NavWorld, *, texts: bool
) -> list[NavItem]:
    """Return the items whose path, or whose words where ``texts``, are in what was trained on."""
    # The guard the other way round: what was trained on is what the items must not show. Longer paths are
    # other tasks here.
    guard = LeakGuard(training, world=world, longer_by=None, texts=texts)
    return [item for item in items if guard.find(item) is not None]


def tell_known(split: Split, known: Sequence[NavItem]) -> int:
    """Warn when a split has items that were trained on, and return how many."""
    if known:
        _LOG.warning(
            "%d of the %d items of %s were trained on (%s first): figures are better than on new ones",
            len(known),
            len(split.items),
            split.source,
            known[0].instr_id,
        )
    return len(known)


def measured_set(split: Split, parts: Sequence[Any] | None = None) -> MeasuredSet:
    """Return a split as what is measured on.

    Args:
        split: the split.
        parts: what decides the figures beside the agent; by default items and buildings.
    """
    return MeasuredSet(
        split.source, fingerprint(split_parts(split) if parts is None else parts), len(split.items)
    )


def another_line(measured: MeasuredSet, step: int, path: Path, *, verb: str = "measured") -> str:
    """Return the line that says what was measured with which checkpoint, and where the figures are."""
    about = measured.record()
    return (
        f"{verb} on {about['file']} ({about['items']:,} items, hash {about['hash']}) with the checkpoint "
        f"of step {step}: {path}\n"
    )


def result_path(run: RunFolder, kind: str, measured: MeasuredSet, *, generated: str | None = None) -> Path:
    """Return where something of another split goes: ``KIND-STEM-HASH.json`` in the run folder.

    Args:
        run: its folder.
        kind: ``"evaluation"``, ``"predictions"`` or ``"instructions"``.
        measured: the split; the stem is that of its file.
        generated: name of the split where there is no file.

    Example:
        >>> result_path(RunFolder(Path("run")), "evaluation", MeasuredSet("R2R_test.json", "8c" * 32, 5)).name
        'evaluation-R2R_test-8c8c8c8c8c8c.json'
    """
    stem = generated or re.sub(r"\.(json|jsonl|ndjson)(\.gz)?$", "", Path(measured.file).name)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem)[:60].strip("-.") or "items"
    return run.path / f"{kind}-{stem}-{measured.record()['hash']}.json"
