"""Dialog responses from a latent that the context predicts."""
