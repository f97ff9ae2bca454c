"""Sentences generated from a label."""
