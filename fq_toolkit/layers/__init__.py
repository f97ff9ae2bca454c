"""The drop-in layers."""

from fq_toolkit.layers.commitment import collect_commitment, commitment_loss
from fq_toolkit.layers.feature_quantizer import FeatureQuantizer, QuantizerOutput
from fq_toolkit.layers.freezing import frozen
from fq_toolkit.layers.functional import quantize
from fq_toolkit.layers.insertion import quantize_discriminator
from fq_toolkit.layers.report import codebook_report
from fq_toolkit.layers.residual import ResidualQuantizer
from fq_toolkit.layers.updates import coalesce_updates, commit_updates

__all__ = [
    "FeatureQuantizer",
    "QuantizerOutput",
    "ResidualQuantizer",
    "coalesce_updates",
    "codebook_report",
    "collect_commitment",
    "commit_updates",
    "commitment_loss",
    "frozen",
    "quantize",
    "quantize_discriminator",
]
