"""Drop-in layers on fused kernels: quantized features, latents for language models, navigation pretraining.

The public names are loaded on first use, so that ``import fq_toolkit`` takes milliseconds, and the help of
the command line does not wait for torch.
"""

from typing import TYPE_CHECKING

from fq_toolkit.lazy import lazy_names

if TYPE_CHECKING:
    from fq_toolkit.layers import (
        FeatureQuantizer,
        QuantizerOutput,
        ResidualQuantizer,
        codebook_report,
        collect_commitment,
        commitment_loss,
        frozen,
        quantize,
        quantize_discriminator,
    )
    from fq_toolkit.layers.latent.injection import inject_latent, remove_latent
    from fq_toolkit.layers.latent.loading import load_latent
    from fq_toolkit.layers.vln_pretraining_head import VLNPretrainingHead

__version__ = "0.1.0"

_HOME = {
    "FeatureQuantizer": "fq_toolkit.layers",
    "QuantizerOutput": "fq_toolkit.layers",
    "ResidualQuantizer": "fq_toolkit.layers",
    "VLNPretrainingHead": "fq_toolkit.layers.vln_pretraining_head",
    "codebook_report": "fq_toolkit.layers",
    "collect_commitment": "fq_toolkit.layers",
    "commitment_loss": "fq_toolkit.layers",
    "frozen": "fq_toolkit.layers",
    "inject_latent": "fq_toolkit.layers.latent.injection",
    "load_latent": "fq_toolkit.layers.latent.loading",
    "quantize": "fq_toolkit.layers",
    "quantize_discriminator": "fq_toolkit.layers",
    "remove_latent": "fq_toolkit.layers.latent.injection",
}

__all__ = [
    "FeatureQuantizer",
    "QuantizerOutput",
    "ResidualQuantizer",
    "VLNPretrainingHead",
    "__version__",
    "codebook_report",
    "collect_commitment",
    "commitment_loss",
    "frozen",
    "inject_latent",
    "load_latent",
    "quantize",
    "quantize_discriminator",
    "remove_latent",
]

__getattr__, __dir__ = lazy_names(globals(), _HOME)
