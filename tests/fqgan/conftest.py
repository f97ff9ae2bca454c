"""A GAN of the smallest size, and an extractor that is trained briefly."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fq_toolkit.fqgan.data import datasets
from fq_toolkit.fqgan.gan.config import FQGANConfig
from fq_toolkit.fqgan.metrics import extractors
from fq_toolkit.training import session

TINY = FQGANConfig(
    fq="regularize", steps=4, fq_warmup=3, num_codes=8, channels=4, latent_size=8, batch_size=8,
    eval_samples=20, log_every=1, checkpoint_every=2, evaluate_every=0, device="cpu",
)  # fmt: skip


@pytest.fixture(scope="session")
def tiny() -> FQGANConfig:
    """Return options of a run that takes a second."""
    return TINY


@pytest.fixture(autouse=True, scope="session")
def brief_extractor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the user's cache out of the tests, and train the extractor for one epoch only."""
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("cache")
    patch.setattr(extractors, "cache_folder", lambda: folder)
    patch.setattr(extractors, "EPOCHS", 1)
    yield folder
    patch.undo()


@pytest.fixture(scope="module")
def small_and_plain() -> Iterator[None]:
    """Train on 300 digits and draw no curves, which take longer than such a run; test_cli.py draws them."""
    patch = pytest.MonkeyPatch()
    data = datasets.load_digits()
    few = data._replace(images=data.images[:300], labels=data.labels[:300])
    patch.setitem(datasets.DATASETS, "digits", lambda: few)
    patch.setattr(session, "plot_curves", lambda metrics, target, title: target.write_bytes(b""))
    yield
    patch.undo()
