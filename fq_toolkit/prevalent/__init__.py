"""Vision-and-language navigation (PREVALENT, CVPR 2020, arXiv 2002.10638) without a simulator build.

Worlds, a batched environment, features and metrics. The names are loaded on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fq_toolkit.prevalent.data.annotations import load_hanna, load_ndh, load_r2r
    from fq_toolkit.prevalent.data.leak_guard import check_disjoint
    from fq_toolkit.prevalent.data.predictions import load_predictions, save_predictions
    from fq_toolkit.prevalent.data.triplet_files import load_triplets, save_triplets
    from fq_toolkit.prevalent.data.triplets import Triplet, action_label, collect_triplets
    from fq_toolkit.prevalent.files import DataError
    from fq_toolkit.prevalent.metrics.path_metrics import PathMetrics, measure_paths
    from fq_toolkit.prevalent.metrics.scoring import (
        HannaScores,
        NDHScores,
        R2RScores,
        score_hanna,
        score_ndh,
        score_r2r,
    )
    from fq_toolkit.prevalent.miniworld.world import MiniWorld
    from fq_toolkit.prevalent.model.config import PrevalentConfig
    from fq_toolkit.prevalent.model.encoder import PrevalentModel, PrevalentOutput, TextCache
    from fq_toolkit.prevalent.model.speaker import Speaker
    from fq_toolkit.prevalent.text.length_limit import check_lengths
    from fq_toolkit.prevalent.text.vocabulary import Vocabulary
    from fq_toolkit.prevalent.world.angles import angle_features
    from fq_toolkit.prevalent.world.env import BatchedNavEnv, Step
    from fq_toolkit.prevalent.world.features import FeatureStore
    from fq_toolkit.prevalent.world.items import NavItem, check_items
    from fq_toolkit.prevalent.world.observation import Observation
    from fq_toolkit.prevalent.world.paths import sample_paths
    from fq_toolkit.prevalent.world.scan import Scan
    from fq_toolkit.prevalent.world.simulator import (
        CameraState,
        VisibleViewpoint,
        move_camera,
        place_camera,
        visible_viewpoints,
    )
    from fq_toolkit.prevalent.world.world import NavWorld

_HOME = {
    "BatchedNavEnv": "fq_toolkit.prevalent.world.env",
    "CameraState": "fq_toolkit.prevalent.world.simulator",
    "DataError": "fq_toolkit.prevalent.files",
    "FeatureStore": "fq_toolkit.prevalent.world.features",
    "HannaScores": "fq_toolkit.prevalent.metrics.scoring",
    "MiniWorld": "fq_toolkit.prevalent.miniworld.world",
    "NDHScores": "fq_toolkit.prevalent.metrics.scoring",
    "NavItem": "fq_toolkit.prevalent.world.items",
    "NavWorld": "fq_toolkit.prevalent.world.world",
    "Observation": "fq_toolkit.prevalent.world.observation",
    "PathMetrics": "fq_toolkit.prevalent.metrics.path_metrics",
    "PrevalentConfig": "fq_toolkit.prevalent.model.config",
    "PrevalentModel": "fq_toolkit.prevalent.model.encoder",
    "PrevalentOutput": "fq_toolkit.prevalent.model.encoder",
    "R2RScores": "fq_toolkit.prevalent.metrics.scoring",
    "Scan": "fq_toolkit.prevalent.world.scan",
    "Speaker": "fq_toolkit.prevalent.model.speaker",
    "Step": "fq_toolkit.prevalent.world.env",
    "TextCache": "fq_toolkit.prevalent.model.encoder",
    "Triplet": "fq_toolkit.prevalent.data.triplets",
    "VisibleViewpoint": "fq_toolkit.prevalent.world.simulator",
    "Vocabulary": "fq_toolkit.prevalent.text.vocabulary",
    "action_label": "fq_toolkit.prevalent.data.triplets",
    "angle_features": "fq_toolkit.prevalent.world.angles",
    "check_disjoint": "fq_toolkit.prevalent.data.leak_guard",
    "check_items": "fq_toolkit.prevalent.world.items",
    "check_lengths": "fq_toolkit.prevalent.text.length_limit",
    "collect_triplets": "fq_toolkit.prevalent.data.triplets",
    "load_hanna": "fq_toolkit.prevalent.data.annotations",
    "load_ndh": "fq_toolkit.prevalent.data.annotations",
    "load_predictions": "fq_toolkit.prevalent.data.predictions",
    "load_r2r": "fq_toolkit.prevalent.data.annotations",
    "load_triplets": "fq_toolkit.prevalent.data.triplet_files",
    "measure_paths": "fq_toolkit.prevalent.metrics.path_metrics",
    "move_camera": "fq_toolkit.prevalent.world.simulator",
    "place_camera": "fq_toolkit.prevalent.world.simulator",
    "sample_paths": "fq_toolkit.prevalent.world.paths",
    "save_predictions": "fq_toolkit.prevalent.data.predictions",
    "save_triplets": "fq_toolkit.prevalent.data.triplet_files",
    "score_hanna": "fq_toolkit.prevalent.metrics.scoring",
    "score_ndh": "fq_toolkit.prevalent.metrics.scoring",
    "score_r2r": "fq_toolkit.prevalent.metrics.scoring",
    "visible_viewpoints": "fq_toolkit.prevalent.world.simulator",
}

__all__ = [
    "BatchedNavEnv",
    "CameraState",
    "DataError",
    "FeatureStore",
    "HannaScores",
    "MiniWorld",
    "NDHScores",
    "NavItem",
    "NavWorld",
    "Observation",
    "PathMetrics",
    "PrevalentConfig",
    "PrevalentModel",
    "PrevalentOutput",
    "R2RScores",
    "Scan",
    "Speaker",
    "Step",
    "TextCache",
    "Triplet",
    "VisibleViewpoint",
    "Vocabulary",
    "action_label",
    "angle_features",
    "check_disjoint",
    "check_items",
    "check_lengths",
    "collect_triplets",
    "load_hanna",
    "load_ndh",
    "load_predictions",
    "load_r2r",
    "load_triplets",
    "measure_paths",
    "move_camera",
    "place_camera",
    "sample_paths",
    "save_predictions",
    "save_triplets",
    "score_hanna",
    "score_ndh",
    "score_r2r",
    "visible_viewpoints",
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
