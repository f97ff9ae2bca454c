"""The drop-in layers."""

from fq_toolkit.layers.commitment import collect_commitment, commitment_loss
from fq_toolkit.layers.feature_quantizer import FeatureQuantizer, QuantizerOutput
from fq_toolkit.layers.freezing import frozen
from fq_toolkit.layers.functional import quantize
from fq_toolkit.layers.updates import coalesce_updates, commit_updates

__all__ = [
    "FeatureQuantizer",
    "QuantizerOutput",
    "coalesce_updates",
    "collect_commitment",
    "commit_updates",
    "commitment_loss",
    "frozen",
    "quantize",
]
