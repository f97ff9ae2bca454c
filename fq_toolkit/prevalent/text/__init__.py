"""Words of instructions and their limits."""
