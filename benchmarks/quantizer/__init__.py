"""The quantizer beside its peers."""
