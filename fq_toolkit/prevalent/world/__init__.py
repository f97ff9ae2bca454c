"""Scans, the simulator's geometry, features, and the batched environment."""
