"""One finished run of the smallest GAN for each file of tests."""

from pathlib import Path

import pytest

from fq_toolkit.fqgan.gan.config import FQGANConfig
from fq_toolkit.fqgan.gan.training import train


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: FQGANConfig, small_and_plain: None) -> Path:
    """Return a run folder with the checkpoints of steps 2 and 4."""
    return train(tiny, out=tmp_path_factory.mktemp("runs") / "run").run
