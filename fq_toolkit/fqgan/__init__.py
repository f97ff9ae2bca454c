"""Feature Quantization Improves GAN Training (ICML 2020, arXiv 2004.02088): models, metrics, trainer.

``fq-toolkit train fqgan`` on the command line, :func:`fq_toolkit.fqgan.gan.training.train` from Python.
"""
