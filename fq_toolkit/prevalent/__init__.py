"""Vision-and-language navigation (PREVALENT, CVPR 2020, arXiv 2002.10638) without a simulator build.

Worlds, a batched environment, features and metrics. The names are loaded on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fq_toolkit.prevalent.annotations import load_hanna, load_ndh, load_r2r
    from fq_toolkit.prevalent.env import BatchedNavEnv
    from fq_toolkit.prevalent.features import FeatureStore
    from fq_toolkit.prevalent.items import NavItem
    from fq_toolkit.prevalent.miniworld import MiniWorld
    from fq_toolkit.prevalent.observation import Observation
    from fq_toolkit.prevalent.world import NavWorld

_HOME = {
    "BatchedNavEnv": "fq_toolkit.prevalent.env",
    "FeatureStore": "fq_toolkit.prevalent.features",
    "MiniWorld": "fq_toolkit.prevalent.miniworld",
    "NavItem": "fq_toolkit.prevalent.items",
    "NavWorld": "fq_toolkit.prevalent.world",
    "Observation": "fq_toolkit.prevalent.observation",
    "load_hanna": "fq_toolkit.prevalent.annotations",
    "load_ndh": "fq_toolkit.prevalent.annotations",
    "load_r2r": "fq_toolkit.prevalent.annotations",
}

__all__ = [
    "BatchedNavEnv",
    "FeatureStore",
    "MiniWorld",
    "NavItem",
    "NavWorld",
    "Observation",
    "load_hanna",
    "load_ndh",
    "load_r2r",
]


def __getattr__(name: str) -> Any:
    """Load a public name from the module that defines it."""
    if name not in _HOME:
        raise AttributeError(
            f"module 'fq_toolkit.prevalent' has no attribute {name!r}; it offers {', '.join(__all__)}"
        )
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
