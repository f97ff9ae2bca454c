"""Latents for decoders, beside plain GPT-2 and the original code's way."""
