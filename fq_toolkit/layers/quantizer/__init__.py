"""`FeatureQuantizer` and what works on the quantizers of a model."""
