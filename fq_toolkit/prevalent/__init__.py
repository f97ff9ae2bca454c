"""Vision-and-language navigation (PREVALENT, CVPR 2020, arXiv 2002.10638) without a simulator build.

Worlds, a batched environment, features, data, metrics, models and agents. The names are loaded on first use.
"""

from typing import TYPE_CHECKING

from fq_toolkit.lazy import lazy_names

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
    from fq_toolkit.prevalent.miniworld.dialogs import write_dialogs
    from fq_toolkit.prevalent.miniworld.requests import write_requests
    from fq_toolkit.prevalent.miniworld.world import MiniWorld
    from fq_toolkit.prevalent.model.beam import BeamPath, beam_search
    from fq_toolkit.prevalent.model.config import PrevalentConfig
    from fq_toolkit.prevalent.model.encoder import PrevalentModel, PrevalentOutput, TextCache
    from fq_toolkit.prevalent.model.follower import FollowerAgent
    from fq_toolkit.prevalent.model.rollout import Rollout, rollout
    from fq_toolkit.prevalent.model.speaker import Speaker, retell
    from fq_toolkit.prevalent.tasks.losses import a2c_loss, imitation_loss
    from fq_toolkit.prevalent.tasks.speaker.augment import augment
    from fq_toolkit.prevalent.text.length_limit import check_lengths
    from fq_toolkit.prevalent.text.vocabulary import Vocabulary
    from fq_toolkit.prevalent.world.angles import angle_features
    from fq_toolkit.prevalent.world.env import BatchedNavEnv, Step
    from fq_toolkit.prevalent.world.environment_dropout import draw_feature_mask
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

# Public name -> its module, so that `import fq_toolkit.prevalent` loads only what is used.
_HOME = {
    "BatchedNavEnv": "fq_toolkit.prevalent.world.env",
    "BeamPath": "fq_toolkit.prevalent.model.beam",
    "CameraState": "fq_toolkit.prevalent.world.simulator",
    "DataError": "fq_toolkit.prevalent.files",
    "FeatureStore": "fq_toolkit.prevalent.world.features",
    "FollowerAgent": "fq_toolkit.prevalent.model.follower",
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
    "Rollout": "fq_toolkit.prevalent.model.rollout",
    "Scan": "fq_toolkit.prevalent.world.scan",
    "Speaker": "fq_toolkit.prevalent.model.speaker",
    "Step": "fq_toolkit.prevalent.world.env",
    "TextCache": "fq_toolkit.prevalent.model.encoder",
    "Triplet": "fq_toolkit.prevalent.data.triplets",
    "VisibleViewpoint": "fq_toolkit.prevalent.world.simulator",
    "Vocabulary": "fq_toolkit.prevalent.text.vocabulary",
    "a2c_loss": "fq_toolkit.prevalent.tasks.losses",
    "action_label": "fq_toolkit.prevalent.data.triplets",
    "angle_features": "fq_toolkit.prevalent.world.angles",
    "augment": "fq_toolkit.prevalent.tasks.speaker.augment",
    "beam_search": "fq_toolkit.prevalent.model.beam",
    "check_disjoint": "fq_toolkit.prevalent.data.leak_guard",
    "check_items": "fq_toolkit.prevalent.world.items",
    "check_lengths": "fq_toolkit.prevalent.text.length_limit",
    "collect_triplets": "fq_toolkit.prevalent.data.triplets",
    "draw_feature_mask": "fq_toolkit.prevalent.world.environment_dropout",
    "imitation_loss": "fq_toolkit.prevalent.tasks.losses",
    "load_hanna": "fq_toolkit.prevalent.data.annotations",
    "load_ndh": "fq_toolkit.prevalent.data.annotations",
    "load_predictions": "fq_toolkit.prevalent.data.predictions",
    "load_r2r": "fq_toolkit.prevalent.data.annotations",
    "load_triplets": "fq_toolkit.prevalent.data.triplet_files",
    "measure_paths": "fq_toolkit.prevalent.metrics.path_metrics",
    "move_camera": "fq_toolkit.prevalent.world.simulator",
    "place_camera": "fq_toolkit.prevalent.world.simulator",
    "retell": "fq_toolkit.prevalent.model.speaker",
    "rollout": "fq_toolkit.prevalent.model.rollout",
    "sample_paths": "fq_toolkit.prevalent.world.paths",
    "save_predictions": "fq_toolkit.prevalent.data.predictions",
    "save_triplets": "fq_toolkit.prevalent.data.triplet_files",
    "score_hanna": "fq_toolkit.prevalent.metrics.scoring",
    "score_ndh": "fq_toolkit.prevalent.metrics.scoring",
    "score_r2r": "fq_toolkit.prevalent.metrics.scoring",
    "visible_viewpoints": "fq_toolkit.prevalent.world.simulator",
    "write_dialogs": "fq_toolkit.prevalent.miniworld.dialogs",
    "write_requests": "fq_toolkit.prevalent.miniworld.requests",
}

__all__ = [
    "BatchedNavEnv",
    "BeamPath",
    "CameraState",
    "DataError",
    "FeatureStore",
    "FollowerAgent",
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
    "Rollout",
    "Scan",
    "Speaker",
    "Step",
    "TextCache",
    "Triplet",
    "VisibleViewpoint",
    "Vocabulary",
    "a2c_loss",
    "action_label",
    "angle_features",
    "augment",
    "beam_search",
    "check_disjoint",
    "check_items",
    "check_lengths",
    "collect_triplets",
    "draw_feature_mask",
    "imitation_loss",
    "load_hanna",
    "load_ndh",
    "load_predictions",
    "load_r2r",
    "load_triplets",
    "measure_paths",
    "move_camera",
    "place_camera",
    "retell",
    "rollout",
    "sample_paths",
    "save_predictions",
    "save_triplets",
    "score_hanna",
    "score_ndh",
    "score_r2r",
    "visible_viewpoints",
    "write_dialogs",
    "write_requests",
]

__getattr__, __dir__ = lazy_names(globals(), _HOME)
