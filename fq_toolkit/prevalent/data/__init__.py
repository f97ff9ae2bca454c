"""Annotations, triplets and predictions, read and checked."""
