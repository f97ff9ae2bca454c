"""Attention of transformers with memory slots in front of the text."""
