"""A VQ-VAE on digits in four files: how a new trainer is built on what fq-toolkit's own ones share.

`python -m examples.vqvae train --steps 300`, then `python -m examples.vqvae evaluate RUN`.
"""
