"""Metrics of paths, and scores of prediction files."""
