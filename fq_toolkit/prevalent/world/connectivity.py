"""Connectivity files in the Matterport format: one JSON list of viewpoints per scan."""

from pathlib import Path
from typing import Any

import numpy as np

from fq_toolkit.prevalent.files import DataError, check_readable, field, read_records, write_json
from fq_toolkit.prevalent.world.scan import Scan


def connectivity_path(folder: Path, scan: str) -> Path:
    """Return the path of the file of a scan."""
    return folder / f"{scan}_connectivity.json"


def list_scans(folder: Path) -> list[str]:
    """Return the scans of a folder: those in scans.txt, or else every ``*_connectivity.json``.

    Raises:
        DataError: if the folder is missing or names no scan.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; expected one with SCAN_connectivity.json files")
    listing = folder / "scans.txt"  # decides the order of the scans, where it exists
    if listing.exists():
        check_readable(listing)
        scans = listing.read_text(encoding="utf-8").split()
    else:
        scans = sorted(
            path.name.removesuffix("_connectivity.json") for path in folder.glob("*_connectivity.json")
        )
    if not scans:
        raise DataError(f"{folder} names no scans: no scans.txt and no SCAN_connectivity.json")
    return scans


def read_scan(folder: Path, name: str) -> Scan:
    """Read one scan; viewpoints that are not included are left out of the graph.

    Raises:
        DataError: if the file is missing, damaged or inconsistent; the message names file and viewpoint.
    """
    path = connectivity_path(folder, name)
    records = read_records(path)
    names: list[str] = []
    poses: list[list[Any]] = []
    rows: list[list[Any]] = []
    included: list[bool] = []
    for position, record in enumerate(records):
        where = f"{path}: viewpoint {position}"
        names.append(field(record, "image_id", str, where))
        where = f"{path}: viewpoint {position} ({names[-1]!r})"
        included.append(field(record, "included", bool, where))
        poses.append(field(record, "pose", list, where))
        rows.append(field(record, "unobstructed", list, where))
        if len(poses[-1]) != 16:
            raise DataError(f"{where}: pose has {len(poses[-1])} numbers; expected 16 (4 x 4, row by row)")
        if len(rows[-1]) != len(records):
            raise DataError(f"{where}: unobstructed has {len(rows[-1])} entries; expected {len(records)}")
    try:
        pose = np.array(poses, dtype=np.float64).reshape(-1, 16)
        # Some exports write 0 and 1; 0.5 or "no" would pass for an edge if it were only cast to bool.
        entries = np.array(rows).reshape(len(records), len(records))
        if entries.dtype.kind not in "bi" and len(records):
            raise ValueError("an edge is true or false")
        unobstructed = entries.astype(bool)
        if not np.array_equal(unobstructed, entries):
            raise ValueError("an edge is true or false")
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: a pose or a row of unobstructed holds something else ({error})") from error
    np.fill_diagonal(unobstructed, False)  # some files mark a viewpoint as visible from itself
    # Rows refer to all viewpoints of the file, so excluded ones are dropped only after all are read.
    kept = np.nonzero(np.array(included))[0]
    return Scan(
        name,
        [names[i] for i in kept],
        pose[kept][:, [3, 7, 11]],  # the translation of the 4 x 4 matrix
        unobstructed[np.ix_(kept, kept)],
        excluded=[names[i] for i, real in enumerate(included) if not real],
        source=str(path),
    )


def write_scan(scan: Scan, folder: Path) -> Path:
    """Write one scan; the rotation of each pose is the identity, the height above the floor is 0.

    Returns:
        The file.

    Raises:
        RunError: if it cannot be written.
    """
    records = [
        {
            "image_id": viewpoint,
            "pose": [1, 0, 0, x, 0, 1, 0, y, 0, 0, 1, z, 0, 0, 0, 1],
            "included": True,
            "visible": row,
            "unobstructed": row,
            "height": 0.0,
        }
        for viewpoint, (x, y, z), row in zip(
            scan.viewpoints, scan.positions.tolist(), scan.adjacent.tolist(), strict=True
        )
    ]
    return write_json(connectivity_path(folder, scan.name), records)
