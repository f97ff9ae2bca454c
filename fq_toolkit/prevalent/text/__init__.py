"""Vocabularies of instructions, and limits of their length."""
