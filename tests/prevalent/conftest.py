"""A generated world, the real graphs and their annotations."""

from pathlib import Path

import pytest

from fq_toolkit.prevalent import MiniWorld, NavWorld


@pytest.fixture(scope="session")
def mini() -> MiniWorld:
    return MiniWorld(3)


@pytest.fixture(scope="session")
def real_world(shared_data: Path) -> NavWorld:
    """Return the 90 Matterport graphs."""
    folder = shared_data / "vln" / "connectivity"
    if not folder.is_dir():
        pytest.skip(f"no Matterport graphs at {folder}")
    return NavWorld.from_connectivity(folder)


@pytest.fixture(scope="session")
def tasks(shared_data: Path) -> Path:
    """Return the folder of R2R and NDH annotations."""
    folder = shared_data / "vln" / "tasks"
    if not folder.is_dir():
        pytest.skip(f"no annotations at {folder}")
    return folder
