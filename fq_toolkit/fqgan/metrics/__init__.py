"""Image measures, and the features they are computed from."""
