"""Generators and discriminators: residual, BigGAN and StyleGAN2."""
