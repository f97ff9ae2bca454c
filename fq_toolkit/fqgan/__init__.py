"""FQ-GAN (ICML 2020, arXiv 2004.02088): GANs with feature quantization, U-GAT-IT, their data and metrics.

``fq-toolkit train fqgan`` and ``train ugatit`` on the command line. The names are loaded on first use.
"""

from typing import TYPE_CHECKING

from fq_toolkit.lazy import lazy_names

if TYPE_CHECKING:
    from fq_toolkit.fqgan.data.datasets import ImageDataset, load_dataset
    from fq_toolkit.fqgan.data.unpaired import UnpairedDataset, load_unpaired
    from fq_toolkit.fqgan.gan.config import FQGANConfig, preset
    from fq_toolkit.fqgan.gan.evaluation import Evaluation
    from fq_toolkit.fqgan.gan.networks.families import FAMILIES
    from fq_toolkit.fqgan.gan.networks.quantization import quantizer_factory
    from fq_toolkit.fqgan.gan.networks.released_names import load_released, to_released
    from fq_toolkit.fqgan.gan.networks.residual import ImageShape
    from fq_toolkit.fqgan.gan.runs import evaluate_run, load_run
    from fq_toolkit.fqgan.gan.sampling import Sampler
    from fq_toolkit.fqgan.gan.training import GANTask, train
    from fq_toolkit.fqgan.metrics.extractors import load_extractor
    from fq_toolkit.fqgan.metrics.frechet import frechet_distance
    from fq_toolkit.fqgan.ugatit.config import UGATITConfig
    from fq_toolkit.fqgan.ugatit.runs import load_translators
    from fq_toolkit.fqgan.ugatit.training import UGATITTask
    from fq_toolkit.fqgan.ugatit.translate import translate_folder

_HOME = {
    "Evaluation": "fq_toolkit.fqgan.gan.evaluation",
    "FAMILIES": "fq_toolkit.fqgan.gan.networks.families",
    "FQGANConfig": "fq_toolkit.fqgan.gan.config",
    "GANTask": "fq_toolkit.fqgan.gan.training",
    "ImageDataset": "fq_toolkit.fqgan.data.datasets",
    "ImageShape": "fq_toolkit.fqgan.gan.networks.residual",
    "Sampler": "fq_toolkit.fqgan.gan.sampling",
    "UGATITConfig": "fq_toolkit.fqgan.ugatit.config",
    "UGATITTask": "fq_toolkit.fqgan.ugatit.training",
    "UnpairedDataset": "fq_toolkit.fqgan.data.unpaired",
    "evaluate_run": "fq_toolkit.fqgan.gan.runs",
    "frechet_distance": "fq_toolkit.fqgan.metrics.frechet",
    "load_dataset": "fq_toolkit.fqgan.data.datasets",
    "load_extractor": "fq_toolkit.fqgan.metrics.extractors",
    "load_released": "fq_toolkit.fqgan.gan.networks.released_names",
    "load_run": "fq_toolkit.fqgan.gan.runs",
    "load_translators": "fq_toolkit.fqgan.ugatit.runs",
    "load_unpaired": "fq_toolkit.fqgan.data.unpaired",
    "preset": "fq_toolkit.fqgan.gan.config",
    "quantizer_factory": "fq_toolkit.fqgan.gan.networks.quantization",
    "to_released": "fq_toolkit.fqgan.gan.networks.released_names",
    "train": "fq_toolkit.fqgan.gan.training",
    "translate_folder": "fq_toolkit.fqgan.ugatit.translate",
}

__all__ = [
    "Evaluation",
    "FAMILIES",
    "FQGANConfig",
    "GANTask",
    "ImageDataset",
    "ImageShape",
    "Sampler",
    "UGATITConfig",
    "UGATITTask",
    "UnpairedDataset",
    "evaluate_run",
    "frechet_distance",
    "load_dataset",
    "load_extractor",
    "load_released",
    "load_run",
    "load_translators",
    "load_unpaired",
    "preset",
    "quantizer_factory",
    "to_released",
    "train",
    "translate_folder",
]

__getattr__, __dir__ = lazy_names(globals(), _HOME)
