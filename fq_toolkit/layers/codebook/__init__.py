"""The dictionary of a quantizer: its state, who may write it, how it starts and how it follows the data."""
