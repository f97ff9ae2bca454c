"""Measures of language, of latents and of generated text."""
