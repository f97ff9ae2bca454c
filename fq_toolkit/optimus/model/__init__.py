"""The sentence VAE: model, losses, decoding, and weights read from elsewhere."""
