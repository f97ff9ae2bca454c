"""Where files live that can be made again: compiled kernels, feature extractors trained in place."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return ``$FQ_TOOLKIT_CACHE``, else ``fq-toolkit`` in the user's cache; it may not exist yet."""
    chosen = os.environ.get("FQ_TOOLKIT_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fq-toolkit"
