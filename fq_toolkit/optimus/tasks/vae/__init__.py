"""The sentence VAE itself: training, evaluation and play."""
