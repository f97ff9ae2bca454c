"""The drop-in layers."""

from fq_toolkit.layers.insertion.discriminator import quantize_discriminator
from fq_toolkit.layers.quantizer.commitment import collect_commitment, commitment_loss
from fq_toolkit.layers.quantizer.feature_quantizer import FeatureQuantizer
from fq_toolkit.layers.quantizer.functional import quantize
from fq_toolkit.layers.quantizer.report import codebook_report
from fq_toolkit.layers.quantizer.residual import ResidualQuantizer
from fq_toolkit.layers.quantizer.results import QuantizerOutput
from fq_toolkit.layers.quantizer.updates import coalesce_updates, commit_updates, frozen

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
