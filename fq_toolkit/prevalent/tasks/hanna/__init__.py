"""HANNA: agents that ask for help."""
