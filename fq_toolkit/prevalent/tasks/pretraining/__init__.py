"""PREVALENT's pretraining: masked words and the next action."""
