"""FQ-GAN: the training step, its losses, and the commands around it."""
