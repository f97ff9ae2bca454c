"""Checkpoints as older versions wrote them."""

import json
from pathlib import Path

from fq_toolkit.training.storage.checkpoints import _checksum
from fq_toolkit.training.storage.measured_data import KEY


def as_older_version(path: Path) -> None:
    """Take out of a checkpoint's JSON what its run is measured on."""
    record = json.loads(path.read_text())
    del record["about"][KEY], record["checksum"]
    path.write_text(json.dumps({**record, "checksum": _checksum(record)}))
