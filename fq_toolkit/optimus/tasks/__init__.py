"""What a sentence VAE is trained for, and the commands."""
