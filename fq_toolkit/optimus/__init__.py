"""Optimus (EMNLP 2020, arXiv 2004.04092): sentence VAEs from pretrained encoders and decoders."""
