"""Measures of walked paths, and scores of prediction files."""
