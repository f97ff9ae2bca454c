"""PREVALENT's pretraining step beside a literal port."""
