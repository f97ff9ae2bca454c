"""Room-to-Room: imitation, then imitation with A2C."""
