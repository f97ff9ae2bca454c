"""`inject_latent`: a sentence-level latent variable for the decoders of transformers."""
